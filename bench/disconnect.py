"""What a client that leaves costs: how soon its slot is free, and when Corral gives it to the next.

    python bench/disconnect.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf [--quick]

A real llama.cpp with two slots, both busy: a client leaves while its reply is generated, or while its long prompt is
read; another client reads a stream in the other slot, and is not to notice. Each case goes through Corral, and, to
compare, straight to the llama-server. Milliseconds count from the client's close to the slot shown free in ``/slots``,
and to the lease being given back in Corral's ``/metrics``. The last line says whether Corral's promises hold: free
within a second (the median), no lease given back before its slot is free, no other stream disturbed. Ctrl-C shows what
has been measured so far.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.pull.wheels import SMOLLM2
from corral.upstream.spec import EngineSpec
from corral_process import KEY, Corral
from real_engine import Bystander, RealEngine, Task, connect, long_prompt, wait_until

DEMO_MODEL = Path("models") / SMOLLM2.file_name
LIMIT_MS = 1000.0

# Room for a long prompt in one slot and a long story in the other.
CONTEXT = 2 * 4096
PROMPT_WORDS = 1800
STORY = [{"role": "user", "content": "Tell me a long story."}]
STORY_TOKENS = 3000
LEFT_TOKENS = 200
# As requests.whole_max_tokens.
FEW_TOKENS = 16

console = Console()


@dataclass(frozen=True, slots=True)
class Freed:
    """What one client's leaving has led to."""

    slot_ms: float
    # None where no Corral is between.
    lease_ms: float | None
    early: bool
    disturbed: bool


@dataclass(slots=True)
class Case:
    """One way to leave. Written by ``main``."""

    door: str
    phase: str
    way: str
    fields: dict[str, Any]
    freed: list[Freed] = field(default_factory=list)

    @property
    def promised(self) -> bool:
        return self.door == "Corral"

    def body(self, seed: str) -> dict[str, Any]:
        prompt = long_prompt(PROMPT_WORDS, seed) if self.phase == "prefill" else STORY
        return {"model": "measured", "messages": prompt, "max_tokens": LEFT_TOKENS, "ignore_eos": True, **self.fields}


class Watch:
    """Looks at ``/slots`` all the time until a task is gone. One writer: its thread."""

    def __init__(self, engine: RealEngine, task: Task) -> None:
        # When each look that still showed the task began.
        self.seen: list[float] = []
        self.gone_at: float | None = None
        self._engine, self._task = engine, task
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def until_gone(self) -> float:
        self._thread.join()
        if self.gone_at is None:
            raise SystemExit("the llama-server does not show its slots any more")
        return self.gone_at

    def _look(self) -> None:
        while True:
            asked_at = time.monotonic()
            if self._task not in self._engine.tasks():
                self.gone_at = time.monotonic()
                return
            self.seen.append(asked_at)


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    runs: Annotated[int, typer.Option(min=1, help="Clients that leave, in each case.")] = 7,
    batch: Annotated[int | None, typer.Option(min=1, help="llama.n_batch; the default is Corral's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama-server.")] = os.cpu_count() or 1,
    quick: Annotated[bool, typer.Option("--quick", help="One run, and the shortest comparisons only.")] = False,
) -> None:
    """Leave a busy llama.cpp in different ways, through Corral and without it."""
    cases = [case for case in plan() if not quick or case.promised or case.phase == "generating"]
    runs = 1 if quick else runs
    spec = EngineSpec("measured", model, threads=threads, ctx=CONTEXT, n_batch=batch, parallel=2)
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        console=Console(stderr=True),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), serving(spec) as (engine, corral), progress:
        task = progress.add_task("measuring", total=runs * len(cases))
        for run in range(runs):
            for case in cases:
                progress.update(task, description=f"{case.door}, {case.phase}, {case.way}")
                case.freed.append(leave(case, engine, corral, f"{case.door} {case.way} {run}"))
                progress.advance(task)
    console.print(table([case for case in cases if case.freed], model.name, threads))
    sys.exit(verdict(cases, runs))


def plan() -> list[Case]:
    """Every way through Corral; without it, what there is to compare."""
    stream: dict[str, Any] = {"stream": True}
    short: dict[str, Any] = {"max_tokens": FEW_TOKENS}
    return [
        Case("Corral", "generating", "stream", stream),
        Case("Corral", "generating", "whole", {}),
        Case("Corral", "prefill", "stream", stream),
        Case("Corral", "prefill", "whole", {}),
        Case("Corral", "prefill", f"whole, {FEW_TOKENS} tokens", short),
        Case("llama-server", "generating", "stream", stream),
        Case("llama-server", "generating", "whole", {}),
        Case("llama-server", "prefill", "stream", stream),
        Case("llama-server", "prefill", f"whole, {FEW_TOKENS} tokens", short),
    ]


@contextmanager
def serving(spec: EngineSpec) -> Iterator[tuple[RealEngine, Corral]]:
    """A llama-server as Corral starts it, at an address that can be watched, and Corral in front of it."""
    if not spec.file.is_file():
        raise SystemExit(f"there is no {spec.file}; get it with 'corral pull smollm2', or name a --model")
    with RealEngine(spec) as engine:
        settings = {"models": [{"name": spec.name, "upstream": engine.url}], "limits": {"requests": 0}}
        with Corral(settings) as corral:
            corral.until_ready()
            yield engine, corral


def leave(case: Case, engine: RealEngine, corral: Corral, seed: str) -> Freed:
    """Fill both slots, leave one of them, and look until it is free."""
    port, key = (corral.port, KEY) if case.promised else (engine.port, None)
    story = {"model": "measured", "messages": STORY, "max_tokens": STORY_TOKENS, "ignore_eos": True}
    with Bystander(port, story, key) as bystander:
        known = set(engine.tasks())
        client = connect(port, case.body(seed), key)
        task = engine.new_task(known, generates=case.phase == "generating")
        # At any moment of a step.
        time.sleep(random.Random(seed).uniform(0.1, 1.0))
        watch = Watch(engine, task)
        left_at = time.monotonic()
        client.close()
        lease_at = until_given_back(corral) if case.promised else None
        slot_at = watch.until_gone()
        disturbed = not bystander.goes_on()
    engine.until_idle()
    wait_until(lambda: not leased(corral))
    early = lease_at is not None and any(asked_at > lease_at for asked_at in watch.seen)
    lease_ms = None if lease_at is None else 1000 * (lease_at - left_at)
    return Freed(1000 * (slot_at - left_at), lease_ms, early, disturbed)


def leased(corral: Corral) -> float:
    """The slots that Corral counts as busy, those it waits for included."""
    now = corral.scrape()
    return now.total("corral_slots_busy") + now.total("corral_slots_lingering")


def until_given_back(corral: Corral) -> float:
    """When only the other client's slot was counted any more."""
    wait_until(lambda: leased(corral) <= 1)
    return time.monotonic()


def table(cases: list[Case], model: str, threads: int) -> Table:
    load = os.getloadavg()[0]
    shown = Table(title=f"{model}, 2 slots, both busy, {threads} thread(s), load average {load:.1f}")
    for name in ("through", "left while", "asked for"):
        shown.add_column(name)
    for name in ("runs", "slot free, ms", "most", "lease back, ms", "most", "early", "others disturbed"):
        shown.add_column(name, justify="right")
    for before, case in zip([None, *cases], cases, strict=False):
        if before is not None and before.door != case.door:
            shown.add_section()
        slots = [each.slot_ms for each in case.freed]
        leases = [each.lease_ms for each in case.freed if each.lease_ms is not None]
        shown.add_row(
            case.door,
            case.phase,
            case.way,
            str(len(slots)),
            *_median_and_most(slots),
            *_median_and_most(leases),
            str(sum(each.early for each in case.freed)) if leases else "",
            str(sum(each.disturbed for each in case.freed)),
        )
    return shown


def verdict(cases: list[Case], runs: int) -> int:
    """Print the last line; the exit code."""
    promised = [case for case in cases if case.promised]
    if any(len(case.freed) < runs for case in promised):
        print("falls short: not every case was measured")
        return 1
    freed = [each for case in promised for each in case.freed]
    slowest = max(promised, key=lambda case: median(each.slot_ms for each in case.freed))
    slowest_ms = median(each.slot_ms for each in slowest.freed)
    early, disturbed = sum(each.early for each in freed), sum(each.disturbed for each in freed)
    holds = slowest_ms <= LIMIT_MS and not early and not disturbed
    print(
        f"{'holds' if holds else 'falls short'}: slot free after {slowest_ms:.0f} ms (median of the slowest case: "
        f"{slowest.phase}, {slowest.way}; limit {LIMIT_MS:.0f}), {max(each.slot_ms for each in freed):.0f} ms at most; "
        f"{early} of {len(freed)} leases back too early, {disturbed} other streams disturbed"
    )
    return 0 if holds else 1


def _median_and_most(values: list[float]) -> tuple[str, str]:
    return (f"{median(values):.0f}", f"{max(values):.0f}") if values else ("", "")


if __name__ == "__main__":
    typer.run(main)
