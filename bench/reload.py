"""Whether clients notice that the settings of a running Corral change.

    python bench/reload.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--quick]

Corral runs real llama.cpps, and twenty streams run all the time. Meanwhile its settings are written anew and reloaded
ten times, by POST /admin/reload and by SIGHUP: a model is added and removed, another one gets new processes, keys and
limits change, and the file is broken. The last line says whether Corral's promises hold: no stream broken, each with
its one record in the log; models that have not changed keep their processes; a broken file is refused and changes
nothing; no process left behind. Ctrl-C shows what has been measured so far.
"""

import itertools
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from corral.pull.wheels import SMOLLM2
from corral_process import KEY, OPERATOR, Corral
from offspring import Offspring
from witness import Ending, Kind, Request, Seen, ask, contradictions

DEMO_MODEL = Path("models") / SMOLLM2.file_name
# The first never changes, the second gets new processes, the third comes and goes.
STEADY, CHANGED, GUEST = "steady", "changed", "guest"
STREAMS = 20
# Of each model: the streams choose by chance, and few of them are to wait.
SLOTS = 16
CONTEXT, OTHER_CONTEXT = SLOTS * 512, SLOTS * 768
TOKENS, QUICK_TOKENS = (40, 100), (24, 48)
# Old processes stay until their streams have ended.
DRAIN_LIMIT_S = 300.0
PAUSE_S, QUICK_PAUSE_S = 6.0, 1.0
# The file of keys has to hold one at any time.
OTHER_KEY_LINE, NEW_KEY = "key-that-stays:resident\n", "key-that-comes-and-goes"
PIDS = dict[str, set[int]]

console = Console()


@dataclass(frozen=True, slots=True)
class Change:
    """One reload: what is written, and what is to come of it."""

    title: str
    write: Callable[["Running"], None]
    # The models that the answer names; None: it is refused.
    expected: dict[str, list[str]] | None
    by_signal: bool = False
    # What holds afterwards.
    holds: Callable[["Running"], bool] = lambda _: True


@dataclass(slots=True)
class Done:
    """What came of a reload. Written by ``do``."""

    change: Change
    streams: int
    seconds: float
    wrong: list[str] = field(default_factory=list)


class Running:
    """Corral, its settings, and the streams that run. Writers: the settings ``do``, the streams their threads."""

    def __init__(self, corral: Corral, settings: dict[str, Any], keys: Path, tokens: tuple[int, int]) -> None:
        self.corral = corral
        self.settings = settings
        self.keys = keys
        self.models = [STEADY, CHANGED]
        self.over = threading.Event()
        self.streams: list[Seen] = []
        self.asides: list[Seen] = []
        self._tokens = tokens
        self._numbers = itertools.count(1)
        self._choosing = threading.Lock()
        self._threads = [
            threading.Thread(target=self._stream, args=(random.Random(number),), daemon=True)
            for number in range(STREAMS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Let the streams come to their end, and begin none."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def open_streams(self, model: str = "") -> list[Seen]:
        """Those that have not ended."""
        with self._choosing:
            streams = list(self.streams)
        return [each for each in streams if not each.ended and model in ("", each.request.body["model"])]

    def forget(self, model: str) -> None:
        """Ask it nothing more; returns when all that was asked is being answered."""
        with self._choosing:
            self.models.remove(model)
        self.corral.until(
            lambda: all(each.begun.is_set() for each in self.open_streams(model)), "answering", DRAIN_LIMIT_S
        )

    def aside(self, key: str) -> Seen:
        """One short request with this key."""
        seen = ask(self.corral.port, key, self._request(STEADY, Kind.CHAT, 1))
        self.asides.append(seen)
        return seen

    def pids(self) -> PIDS:
        """The processes of each model."""
        return {model["name"]: pids_of(model) for model in self.told()}

    def told(self) -> list[dict[str, Any]]:
        status, told = self.corral.operate("GET", "/admin/models")
        if status != 200:
            raise SystemExit(f"/admin/models answers {status}: {told}")
        models: list[dict[str, Any]] = told["models"]
        return models

    def _stream(self, chance: random.Random) -> None:
        while not self.over.is_set():
            with self._choosing:
                model = chance.choice(self.models)
                seen = Seen(self._request(model, Kind.CHAT_STREAM, chance.randint(*self._tokens)))
                self.streams.append(seen)
            ask(self.corral.port, KEY, seen.request, seen)

    def _request(self, model: str, kind: Kind, tokens: int) -> Request:
        number = next(self._numbers)
        text = f"Write the story number {number} of a {model} horse."
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        more = {"max_tokens": tokens, "ignore_eos": True, "stream": kind.streamed}
        return Request(f"reload-{number}", kind, body | more)


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter streams, and shorter pauses between reloads.")
    ] = False,
) -> None:
    """Reload the settings of a Corral that is at work."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        raise SystemExit(measure(model, Path(directory) / "keys", quick=quick))


def measure(model: Path, keys: Path, *, quick: bool) -> int:
    """All of it; the exit code."""
    keys.write_text(OTHER_KEY_LINE)
    settings = settings_of(model)
    done: list[Done] = []
    environment = {"OPERATOR_API_KEY": OPERATOR, "OPENAI_API_KEYS_FILE": str(keys)}
    with Corral(settings, **environment) as corral, Offspring(corral.pid) as offspring:
        corral.until_ready()
        running = Running(corral, deepcopy(settings), keys, QUICK_TOKENS if quick else TOKENS)
        steady = running.pids()[STEADY]
        running.start()
        with suppress(KeyboardInterrupt):
            reload_all(running, done, QUICK_PAUSE_S if quick else PAUSE_S)
        running.finish()
        wrong = [wrong for each in done for wrong in each.wrong]
        if running.pids()[STEADY] != steady:
            wrong.append("the model that never changed has other processes")
        wrong += contradictions([*running.streams, *running.asides], records_of(running))
        if code := corral.stop():
            wrong.append(f"Corral has ended with status {code}")
    console.print(table(done))
    return verdict(running, done, wrong, offspring)


def settings_of(model: Path) -> dict[str, Any]:
    """Two models with processes of their own."""
    file = str(model.resolve())
    return {
        "any_model": False,
        "limits": {"requests": 100_000},
        # As much patience as it takes: what is to be seen is that nobody is forgotten.
        "queue": {"patience": "10m", "unready_patience": "10m"},
        "llama": {"ctx": CONTEXT, "parallel": SLOTS, "threads": 1, "log_dir": None, "extra_args": ["--cache-ram", "0"]},
        "models": [{"name": STEADY, "file": file}, {"name": CHANGED, "file": file}],
    }


def changes() -> list[Change]:
    """The ten reloads, in their order."""
    nothing: dict[str, list[str]] = {}
    return [
        Change("add a model", add_guest, {"added": [GUEST]}),
        Change("change a model", change_context, {"replaced": [CHANGED]}),
        Change("break the file: an unknown setting", break_by_name, None),
        Change("add a key, change limits", add_key, nothing, holds=key_is_known),
        Change("remove a model", remove_guest, {"removed": [GUEST]}),
        Change("break the file: no YAML", break_all, None, by_signal=True),
        Change("add a model", add_guest, {"added": [GUEST]}, by_signal=True),
        Change("change a model", change_context, {"replaced": [CHANGED]}),
        Change("take the key away, lift limits", remove_key, nothing, holds=key_is_unknown),
        Change("remove a model", remove_guest, {"removed": [GUEST]}),
    ]


def add_guest(running: Running) -> None:
    guest = {**running.settings["models"][0], "name": GUEST}
    running.settings["models"].append(guest)
    running.corral.configure(running.settings)


def remove_guest(running: Running) -> None:
    running.forget(GUEST)
    running.settings["models"].pop()
    running.corral.configure(running.settings)


def change_context(running: Running) -> None:
    changed = running.settings["models"][1]
    changed["ctx"] = OTHER_CONTEXT if "ctx" not in changed else CONTEXT
    running.corral.configure(running.settings)


def break_by_name(running: Running) -> None:
    running.corral.configure({**running.settings, "models": [], "modles": running.settings["models"]})


def break_all(running: Running) -> None:
    running.corral.settings_file.write_text("models: [{name: steady, file: ]\n")


def add_key(running: Running) -> None:
    running.keys.write_text(f"{OTHER_KEY_LINE}{NEW_KEY}:newcomer\n")
    running.settings["limits"]["requests"] = 50_000
    running.corral.configure(running.settings)


def remove_key(running: Running) -> None:
    running.keys.write_text(OTHER_KEY_LINE)
    running.settings["limits"]["requests"] = 0
    running.corral.configure(running.settings)


def key_is_known(running: Running) -> bool:
    seen = running.aside(NEW_KEY)
    return seen.ending is Ending.WHOLE and seen.headers.get("x-ratelimit-limit-requests") == "50000"


def key_is_unknown(running: Running) -> bool:
    return running.aside(NEW_KEY).status == 401 and "x-ratelimit-limit-requests" not in running.aside(KEY).headers


def reload_all(running: Running, done: list[Done], pause_s: float) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    todo = changes()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("streams begin", total=len(todo))
        running.corral.until(
            lambda: sum(each.begun.is_set() for each in running.open_streams()) > STREAMS // 2, "busy", DRAIN_LIMIT_S
        )
        for change in todo:
            progress.update(bar, description=change.title)
            done.append(do(running, change))
            progress.advance(bar)
            time.sleep(pause_s)


def do(running: Running, change: Change) -> Done:
    """Write the settings, reload them, and look at what has come of it."""
    before, since = running.pids(), time.monotonic()
    change.write(running)
    result = Done(change, len(running.open_streams()), 0.0)
    if change.by_signal:
        _by_signal(running, change, result)
    else:
        _by_request(running, change, result)
    result.seconds = time.monotonic() - since
    if change.expected is None:
        running.corral.configure(running.settings)
    _look(running, change, before, result)
    if not change.holds(running):
        result.wrong.append(f"{change.title}: it does not hold afterwards")
    return result


def _by_request(running: Running, change: Change, result: Done) -> None:
    status, told = running.corral.operate("POST", "/admin/reload")
    if status != (400 if change.expected is None else 200):
        result.wrong.append(f"{change.title}: the answer is {status}: {told}")
    elif change.expected is not None and _named(told) != change.expected:
        result.wrong.append(f"{change.title}: what was done is {told}")


def _by_signal(running: Running, change: Change, result: Done) -> None:
    """The log has the answer to a signal."""
    event = "settings not reloaded" if change.expected is None else "settings reloaded"
    before = len(_told(running, event))
    os.kill(running.corral.pid, signal.SIGHUP)
    running.corral.until(lambda: len(_told(running, event)) > before, "reloaded by the signal")
    if change.expected is not None and _named(_told(running, event)[-1]) != change.expected:
        result.wrong.append(f"{change.title}: what was done is {_told(running, event)[-1]}")


def _told(running: Running, event: str) -> list[dict[str, Any]]:
    return [line for line in running.corral.events() if line["event"] == event]


def _named(told: dict[str, Any]) -> dict[str, list[str]]:
    kinds = ("added", "removed", "replaced", "adjusted", "restart_needed")
    return {kind: told[kind] for kind in kinds if told[kind]}


def _look(running: Running, change: Change, before: PIDS, result: Done) -> None:
    """Whether the models are those that they should be, in the processes that they should be in."""
    expected = change.expected or {}
    running.corral.until(lambda: _settled(running), "served by new processes alone", DRAIN_LIMIT_S)
    after = running.pids()
    names = (before.keys() | set(expected.get("added", ()))) - set(expected.get("removed", ()))
    if after.keys() != names:
        result.wrong.append(f"{change.title}: the models are {sorted(after)}")
    replaced = set(expected.get("replaced", ()))
    for name in after.keys() & before.keys():
        kept = after[name] == before[name]
        if kept is (name in replaced) or (name in replaced and after[name] & before[name]):
            result.wrong.append(f"{change.title}: '{name}' was in {before[name]} and is in {after[name]}")
    if GUEST in after and GUEST not in running.models:
        running.models.append(GUEST)


def _settled(running: Running) -> bool:
    """Each model has one process, and that is ready."""
    models = running.told()
    return all(len(model["replicas"]) == 1 and model["replicas"][0]["state"] == "ready" for model in models)


def pids_of(model: dict[str, Any]) -> set[int]:
    return {replica["pid"] for replica in model["replicas"]}


def records_of(running: Running) -> list[dict[str, Any]]:
    """All records; the last may come after its answer."""
    corral, asked = running.corral, len(running.streams) + len(running.asides)
    corral.until(
        lambda: not corral.scrape().total("corral_exchanges_in_flight"), "done with all exchanges", DRAIN_LIMIT_S
    )
    with suppress(SystemExit):
        corral.until(lambda: len(corral.records()) >= asked, "telling of all exchanges")
    return corral.records()


def table(done: list[Done]) -> Table:
    shown = Table(title=f"reloads, load average {os.getloadavg()[0]:.1f}")
    shown.add_column("what changes")
    for name in ("by", "streams", "ms", "as it should be"):
        shown.add_column(name, justify="right")
    for each in done:
        by = "SIGHUP" if each.change.by_signal else "POST"
        right = "no" if each.wrong else "refused" if each.change.expected is None else "yes"
        shown.add_row(each.change.title, by, str(each.streams), f"{each.seconds * 1000:.0f}", right)
    return shown


def verdict(running: Running, done: list[Done], wrong: list[str], offspring: Offspring) -> int:
    """Print what is wrong, and the last line; the exit code."""
    for each in wrong[:20]:
        console.print(f"wrong: {each}", highlight=False, soft_wrap=True, markup=False)
    streams, left = running.streams, offspring.left()
    broken = sum(each.ending is not Ending.WHOLE for each in streams)
    refused = sum(each.change.expected is None for each in done)
    least = min((each.streams for each in done), default=0)
    holds = len(done) == len(changes()) and least == STREAMS and not (broken or wrong or left)
    print(
        f"{'holds' if holds else 'falls short'}: {len(done)} reloads ({refused} of broken files) with {least} streams "
        f"running at least, {broken} of {len(streams)} streams broken, {len(wrong)} things wrong, "
        f"{len(left)} of {len(offspring.seen)} processes left"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    typer.run(main)
