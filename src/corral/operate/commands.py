"""``corral models``, ``corral status`` and ``corral reload``."""

import json
import os
import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.live import Live

from corral.config.operator import operator_key
from corral.operate.client import Operator
from corral.operate.tables import fleet_table, model_line, reload_lines

DEFAULT_URL = "http://127.0.0.1:8000"
# How often the live table is drawn anew.
REFRESH_S = 1.0

models_app = typer.Typer(
    help="Models of a running Corral: how they stand, and what is to become of them. Needs OPERATOR_API_KEY.",
    no_args_is_help=True,
)

Url = Annotated[str, typer.Option(help="Where Corral listens.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", help="The operator's key; else OPERATOR_API_KEY, also from .env.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Name = Annotated[str, typer.Argument(help="The model's name, or one of its aliases.")]
AtOnce = Annotated[bool, typer.Option("--at-once", help="Cut its running requests.")]
Replica = Annotated[str | None, typer.Option(help="Only this one of its replicas.", show_default=False)]

out = Console(highlight=False, soft_wrap=True)


@models_app.command("list")
def list_models(url: Url = DEFAULT_URL, api_key: Key = None, as_json: Json = False) -> None:
    """Show all models: state, slots, queue, memory."""
    _print(_operator(url, api_key).models(), fleet_table, as_json=as_json)


@models_app.command()
def show(model: Name, url: Url = DEFAULT_URL, api_key: Key = None, as_json: Json = False) -> None:
    """Show one model, its replicas and the last lines of its log."""
    _print(_operator(url, api_key).model(model), _details, as_json=as_json)


@models_app.command()
def load(
    model: Name, url: Url = DEFAULT_URL, api_key: Key = None, replica: Replica = None, as_json: Json = False
) -> None:
    """Load a model and wait until it is ready; also one that failed before, or was drained."""
    _act(model, _query("load", replica), url, api_key, as_json=as_json)


@models_app.command()
def unload(
    model: Name,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    at_once: AtOnce = False,
    as_json: Json = False,
) -> None:
    """End the processes of a model when its running requests are over."""
    _act(model, _query("unload", at_once=at_once), url, api_key, as_json=as_json)


@models_app.command()
def restart(model: Name, url: Url = DEFAULT_URL, api_key: Key = None, as_json: Json = False) -> None:
    """Serve a model by new processes; running requests finish on the old ones."""
    _act(model, "restart", url, api_key, as_json=as_json)


@models_app.command()
def drain(
    model: Name,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    replica: Replica = None,
    at_once: AtOnce = False,
    as_json: Json = False,
) -> None:
    """Let a model, or one of its replicas, finish its running requests and take no more, until it is loaded again.

    With --at-once they are cut instead, and go on at another replica where they can.
    """
    _act(model, _query("drain", replica, at_once=at_once), url, api_key, as_json=as_json)


@models_app.command()
def pin(
    model: Name,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    off: Annotated[bool, typer.Option("--off", help="Take the pin away.")] = False,
    as_json: Json = False,
) -> None:
    """Never stop a model because others need its memory, or because it is idle."""
    _act(model, "unpin" if off else "pin", url, api_key, as_json=as_json)


def status(
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Json = False,
) -> None:
    """Show how all models stand, anew every second; Ctrl-C ends it."""
    operator = _operator(url, api_key)
    if once or as_json or not out.is_terminal:
        _print(operator.models(), fleet_table, as_json=as_json)
        return
    try:
        with Live(fleet_table(operator.models()), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_S)
                live.update(fleet_table(operator.models()), refresh=True)
    except KeyboardInterrupt:
        return


def reload(url: Url = DEFAULT_URL, api_key: Key = None, as_json: Json = False) -> None:
    """Have a running Corral read its settings anew; wrong ones change nothing."""
    _print(_operator(url, api_key).reload(), reload_lines, as_json=as_json)


def _operator(url: str, api_key: str | None) -> Operator:
    return Operator(url, api_key or operator_key(os.environ))


def _query(action: str, replica: str | None = None, *, at_once: bool = False) -> str:
    """The action with what is said of it."""
    told = {**({"replica": replica} if replica else {}), **({"at_once": "true"} if at_once else {})}
    return f"{action}?{urlencode(told)}" if told else action


def _act(model: str, action: str, url: str, api_key: str | None, *, as_json: bool) -> None:
    _print(_operator(url, api_key).act(model, action), model_line, as_json=as_json)


def _print(told: dict[str, Any], shown: Callable[[dict[str, Any]], object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))  # noqa: T201  (for programs)
    else:
        out.print(shown(told))


def _details(model: dict[str, Any]) -> str:
    lines = [model_line(model)]
    for replica in model["replicas"]:
        where = replica["address"] or "nowhere"
        taken = f"{replica['busy']} of {replica['slots']} slots busy"
        lines.append(f"  {replica['name']}: {replica['state']} at {where}, {taken}, {replica['served']} served")
    lines += [f"  {line}" for line in model["log"] or ()]
    return "\n".join(lines).replace("[", "\\[")
