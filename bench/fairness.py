"""Whether one client's flood keeps another waiting, and whether two floods get the same.

    python bench/fairness.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf [--quick]

A real llama.cpp behind Corral. A guest asks now and then: alone; while another client's flood fills the queue; and,
for contrast, with the flood's own key, which is first come, first served. Then two clients flood with requests of
different size, and what each is served is counted in tokens. The last line says whether it holds: the guest's time to
the first token (p99) in the flood is at most twice that alone, and the rest of one running request; Jain's index of two
equal clients is at least 0.95. Ctrl-C shows what has been measured so far.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from compare.bars import Bar, Panel, drawn
from compare.figures import Spread
from compare.section import publish
from corral.pull.wheels import SMOLLM2
from corral.upstream.spec import EngineSpec
from corral_process import Corral
from real_engine import RealEngine, long_prompt, wait_until
from talk import Broken, Line, Told, percentile

DEMO_MODEL = Path("models") / SMOLLM2.file_name

SLOTS = 2
CONTEXT = SLOTS * 2048
PROMPT_WORDS = 60
TOKENS = 24
# Of two equal clients one asks for few long replies, the other for many short ones.
SHORT_TOKENS = 8
LONG_TOKENS = 48
PAUSE_S = 0.5
# Fewer requests of a client say nothing of its share.
LEAST_COUNTED = 10

TIMES_ALONE = 2.0
JAIN = 0.95

KEYS = {"flood": "key-of-the-flood", "guest": "key-of-the-guest"}
SETTINGS = {
    "limits": {"requests": 0},
    "queue": {"length": 1000, "per_client": 500, "patience": "600s"},
    "timeouts": {"chat": {"first_byte": "600s", "total": "600s"}},
    "server": {"comment_interval": "600s"},
}

console = Console()


@dataclass(slots=True)
class Case:
    """One way in which the guest asks. Written by ``main``."""

    name: str
    # Whose key the guest has; None: there is no flood.
    guest: str
    flood: bool
    answers: list[Told] = field(default_factory=list)
    # The longest request of the flood: what a guest has to wait for at least.
    residual_s: float = 0.0

    @property
    def ttfts(self) -> list[float]:
        return [answer.ttft_s for answer in self.answers]


@dataclass(slots=True)
class Share:
    """What two clients were served while both had requests waiting. Written by ``main``."""

    served: dict[str, float] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)

    @property
    def jain(self) -> float:
        """Jain's index of fairness: 1 is equal, 0.5 is everything to one of two."""
        values = list(self.served.values())
        squares = sum(value**2 for value in values)
        return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    flood: Annotated[int, typer.Option(min=4, help="Requests of the flood that wait at the same time.")] = 100,
    guests: Annotated[int, typer.Option(min=1, help="Requests of the guest, in each case.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama-server.")] = os.cpu_count() or 1,
    docs: Annotated[bool, typer.Option("--docs", help="Write the section of docs/benchmarks.md.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A flood of 12, and 4 guests.")] = False,
) -> None:
    """Flood a real llama.cpp through Corral, and ask beside the flood."""
    flood, guests = (12, 4) if quick else (flood, guests)
    cases = [Case("alone", "guest", False), Case("in a flood", "guest", True), Case("first come", "flood", True)]
    share = Share()
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        console=Console(stderr=True),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), serving(model, threads) as corral, progress:
        task = progress.add_task("measuring", total=len(cases) * guests + 1)
        for case in cases:
            progress.update(task, description=case.name)
            # Behind a queue that is first come, first served, one guest waits for all of it: few are enough.
            count = guests if case.guest == "guest" else max(1, guests // 10)
            measure(case, corral, flood, count, lambda: progress.advance(task))
            progress.advance(task, guests - count)
        progress.update(task, description="two floods")
        compete(share, corral, flood)
        progress.advance(task)
    measured = [case for case in cases if case.answers]
    shown, (holds, said) = table(measured, share, flood, threads), verdict(cases, share)
    console.print(shown)
    print(said)
    if docs and measured:
        publish("fairness", "A guest beside a flood", shown, said, drawn(panels(measured)))
    sys.exit(0 if holds else 1)


@contextmanager
def serving(model: Path, threads: int) -> Iterator[Corral]:
    """A llama-server as Corral starts it, and Corral in front of it with two clients."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    spec = EngineSpec("measured", model, threads=threads, ctx=CONTEXT, parallel=SLOTS)
    keys = ",".join(f"{key}:{client}" for client, key in KEYS.items())
    with RealEngine(spec) as engine:
        settings = {**SETTINGS, "models": [{"name": "measured", "upstream": engine.url}]}
        with Corral(settings, OPENAI_API_KEYS=keys) as corral:
            corral.until_ready()
            yield corral


class Flood:
    """A client that always has so many requests waiting, until the block is left. One writer: its threads."""

    def __init__(self, corral: Corral, client: str, waiting: int, tokens: int = TOKENS) -> None:
        self.answers: list[Told] = []
        self._client = client
        self._tokens = tokens
        self._lines = [Line(corral.port, KEYS[client]) for _ in range(waiting)]
        self._threads = ThreadPoolExecutor(waiting)
        self._futures = [self._threads.submit(self._ask, line, number) for number, line in enumerate(self._lines)]

    def __enter__(self) -> "Flood":
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.hang_up()
        self._threads.shutdown()
        for future in self._futures:
            future.result()

    def _ask(self, line: Line, number: int) -> None:
        turn = 0
        while not line.over:
            try:
                self.answers.append(ask(line, f"{self._client} {number} {turn}", self._tokens))
            except Broken:
                if not line.over:
                    raise
            turn += 1


def ask(line: Line, seed: str, tokens: int = TOKENS) -> Told:
    """One request with a prompt of its own, so that no cache decides."""
    prompt = long_prompt(PROMPT_WORDS, seed)
    return line.stream(prompt, model="measured", max_tokens=tokens, ignore_eos=True)


def measure(case: Case, corral: Corral, flood: int, guests: int, advance: Callable[[], None]) -> None:
    """The guest asks, one request after the other."""
    if not case.flood:
        _visit(case, corral, guests, advance)
        return
    with Flood(corral, "flood", flood) as running:
        wait_until(lambda: waiting(corral) >= flood - SLOTS)
        _visit(case, corral, guests, advance)
    case.residual_s = max(answer.ended_at - answer.first_at for answer in running.answers)


def _visit(case: Case, corral: Corral, guests: int, advance: Callable[[], None]) -> None:
    line = Line(corral.port, KEYS[case.guest])
    for number in range(guests):
        # At any moment of what runs.
        time.sleep(PAUSE_S * (number % 7) / 7)
        case.answers.append(ask(line, f"guest {case.name} {number}"))
        advance()


def compete(share: Share, corral: Corral, flood: int) -> None:
    """Two clients flood; what ended while both had requests waiting is counted."""
    count = flood // 2
    with (
        Flood(corral, "flood", count, LONG_TOKENS) as long,
        Flood(corral, "guest", count, SHORT_TOKENS) as short,
    ):
        wait_until(lambda: waiting(corral) >= 2 * count - SLOTS)
        since = time.monotonic()
        wait_until(lambda: len(long.answers) >= max(LEAST_COUNTED, count // 2))
        until = time.monotonic()
    for client, running in (("flood", long), ("guest", short)):
        counted = [answer for answer in running.answers if since <= answer.ended_at <= until]
        share.served[client] = sum(answer.service for answer in counted)
        share.requests[client] = len(counted)


def waiting(corral: Corral) -> float:
    return corral.scrape().total("corral_queue_waiters")


def table(cases: list[Case], share: Share, flood: int, threads: int) -> Table:
    shown = Table(title=f"{SLOTS} slots, a flood of {flood}, {threads} thread(s), load {os.getloadavg()[0]:.1f}")
    for name in ("the guest asks", "requests", "first token p50, s", "p99, s", "longest request of the flood, s"):
        shown.add_column(name, justify="right")
    for case in cases:
        figures = (f"{median(case.ttfts):.2f}", f"{percentile(case.ttfts, 0.99):.2f}")
        residual = f"{case.residual_s:.2f}" if case.residual_s else ""
        shown.add_row(case.name, str(len(case.answers)), *figures, residual)
    if share.served:
        shown.caption = "Two floods: " + ", ".join(
            f"{share.served[client]:.0f} tokens in {share.requests[client]} requests" for client in share.served
        )
    return shown


def panels(cases: list[Case]) -> list[Panel]:
    """How long the guest waits, from the least to the most."""
    bars = [Bar(case.name, Spread(median(case.ttfts), min(case.ttfts), max(case.ttfts))) for case in cases]
    return [Panel("first token of the guest", "s, median, least and most, less is better", bars, 2)]


def verdict(cases: list[Case], share: Share) -> tuple[bool, str]:
    """Whether it holds, and the last line."""
    alone, flooded, first_come = cases
    if not (alone.answers and flooded.answers and share.served):
        return False, "falls short: not everything was measured"
    allowed_s = TIMES_ALONE * percentile(alone.ttfts, 0.99) + flooded.residual_s
    p99_s = percentile(flooded.ttfts, 0.99)
    holds = p99_s <= allowed_s and share.jain >= JAIN
    return holds, (
        f"{'holds' if holds else 'falls short'}: first token p99 in a flood {p99_s:.2f} s (limit {allowed_s:.2f}: "
        f"twice {percentile(alone.ttfts, 0.99):.2f} alone + {flooded.residual_s:.2f} of a running request), first come "
        f"{percentile(first_come.ttfts, 0.99):.2f} s; Jain's index of two floods {share.jain:.3f} (limit {JAIN})"
    )


if __name__ == "__main__":
    typer.run(main)
