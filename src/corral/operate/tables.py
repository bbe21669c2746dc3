"""How the commands show what a running Corral tells of its models."""

from typing import Any

from rich.table import Table

# What is worth a colour.
COLOURS = {"loaded": "green", "ready": "green", "failed": "red", "unreachable": "red", "loading": "yellow"}
WARNING = "yellow"


def fleet_table(told: dict[str, Any]) -> Table:
    """All models, a line each."""
    table = Table(title=f"Corral {told['version']}", caption=_caption(told))
    for name in ("model", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("replicas", "slots", "waiting", "memory", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for model in told["models"]:
        table.add_row(*_row(model))
    return table


def model_line(model: dict[str, Any]) -> str:
    """A model in one line, for who has just acted on it."""
    state = state_of(model)
    memory = f", {size(model['memory_bytes'])}" if model["memory_bytes"] else ""
    took = f" in {model['load_s']:g} s" if model["phase"] == "loaded" and model["load_s"] is not None else ""
    notes = f" ({', '.join(notes_of(model))})" if notes_of(model) else ""
    return f"{model['name']}: {state}{took}{memory}{notes}"


def reload_lines(told: dict[str, Any]) -> str:
    """What a reload has changed, a line each."""
    kinds = ("added", "removed", "replaced", "adjusted")
    lines = [f"{kind}: {', '.join(told[kind])}" for kind in kinds if told[kind]]
    if told["restart_needed"]:
        lines.append(f"counts after a restart: {', '.join(told['restart_needed'])}")
    return "\n".join(lines) or "the settings are read; no model has changed"


def state_of(model: dict[str, Any]) -> str:
    """The phase of a model that Corral starts, and the best state of the replicas of another."""
    if model["drained"]:
        return "drained"
    if model["started"]:
        return str(model["phase"])
    states = [replica["state"] for replica in model["replicas"]]
    return "ready" if "ready" in states else str(next(iter(states), "unknown"))


def notes_of(model: dict[str, Any]) -> list[str]:
    """What is special about it, and what is wrong."""
    notes = [name for name in ("pinned", "hidden") if model[name]]
    if model["error"]:
        notes.append(str(model["error"]).splitlines()[0])
    return notes


def size(count: int | None) -> str:
    """Bytes as people read them."""
    if not count:
        return ""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    replicas = model["replicas"]
    ready = sum(replica["state"] == "ready" for replica in replicas)
    serving = [replica for replica in replicas if replica["state"] == "ready"]
    slots = f"{sum(each['busy'] for each in replicas)}/{sum(each['slots'] for each in serving)}" if serving else ""
    state = state_of(model)
    colour = COLOURS.get(state)
    idle = "" if model["idle_s"] is None else f"{model['idle_s']:.0f} s"
    shown = f"[{colour}]{state}[/{colour}]" if colour else state
    waiting = str(model["waiting"]) if model["waiting"] else ""
    notes = ", ".join(notes_of(model)).replace("[", "\\[")
    return model["name"], shown, f"{ready}/{len(replicas)}", slots, waiting, size(model["memory_bytes"]), idle, notes


def _caption(told: dict[str, Any]) -> str:
    if told["budget_bytes"] is None:
        return f"{size(told['taken_bytes']) or 'no memory'} taken by started models" if told["taken_bytes"] else ""
    return f"{size(told['taken_bytes']) or '0 MiB'} of {size(told['budget_bytes'])} taken by started models"
