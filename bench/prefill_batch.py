"""Measures what a small batch costs in reading prompts, and what it gains when a client leaves.

    python bench/prefill_batch.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf [--quick]

llama-server reads a prompt in steps of a batch, and looks only between two of them for a client who has left and for
the tokens of other slots. Each row of the table is one llama-server, started the way Corral starts it: it reads a long
prompt alone, and then loses clients in the middle of their prompts while the other slot generates. Rounds go over all
rows before the next begins, so that a busy minute does not fall on one row. Ctrl-C shows what has been measured so far.
"""

import os
import random
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.upstream.spec import EngineSpec
from real_engine import Bystander, RealEngine, connect, long_prompt, progress_of, wait_until

PROMPT_WORDS = 1100
# Room for a long prompt in one slot and a long story in the other.
CONTEXT = 2 * 4096
STORY = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 3000, "ignore_eos": True}
# No batch here is as large.
LONGEST_INPUT = 3000
LIMIT = re.compile(r"current batch size: (\d+)")

console = Console()


@dataclass(slots=True)
class Row:
    """One way to start llama-server, and what was measured. Written by ``measure``."""

    batch: int
    physical: int | None = None
    embeddings: bool = True
    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)
    freed_ms: list[float] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)
    longest_input: int | None = None

    @property
    def name(self) -> str:
        return f"{self.batch} / {self.physical}" if self.physical else str(self.batch)


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file.")],
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 3,
    leavers: Annotated[int, typer.Option(min=1, help="Clients that leave, in each measurement.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama-server.")] = os.cpu_count() or 1,
    quick: Annotated[bool, typer.Option("--quick", help="Two rows, one round, one leaver.")] = False,
    server_bin: Annotated[Path | None, typer.Option(help="The llama-server; else as Corral finds one.")] = None,
) -> None:
    """Read prompts in steps of different sizes, and leave in the middle of them."""
    rows = [Row(64), Row(1024)] if quick else plan()
    rounds, leavers = (1, 1) if quick else (rounds, leavers)
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        console=Console(stderr=True),
    )
    load_before = os.getloadavg()[0]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), progress:
        task = progress.add_task("measuring", total=rounds * len(rows))
        for number, row in product(range(rounds), rows):
            progress.update(task, description=f"batch {row.name}")
            measure(row, spec_of(model, row, threads, server_bin), number, leavers)
            progress.advance(task)
    rows = [row for row in rows if row.freed_ms]
    if rows:
        console.print(table(rows, f"{model.name}, {threads} thread(s), load {load_before:.1f} at the start"))


def plan() -> list[Row]:
    """All sizes; a physical batch of its own; and without embeddings, which is to make no difference to prompts."""
    return [
        *(Row(batch) for batch in (32, 64, 128, 256, 512, 1024, 2048)),
        Row(1024, physical=128),
        *(Row(batch, embeddings=False) for batch in (128, 1024)),
    ]


def spec_of(model: Path, row: Row, threads: int, server_bin: Path | None) -> EngineSpec:
    """How Corral would start it; the last of repeated arguments counts."""
    return EngineSpec(
        name="measured",
        file=model,
        threads=threads,
        ctx=CONTEXT,
        n_batch=row.batch,
        parallel=2,
        embeddings=row.embeddings,
        extra_args=("-ub", str(row.physical)) if row.physical else (),
        server_bin=server_bin,
    )


def measure(row: Row, spec: EngineSpec, number: int, leavers: int) -> None:
    """One long prompt alone; then clients that leave while the other slot generates."""
    with RealEngine(spec) as engine:
        engine.post("/v1/chat/completions", {"messages": long_prompt(3, "warm up"), "max_tokens": 4})
        read(row, engine, number)
        with Bystander(engine.port, STORY) as bystander:
            for leaver in range(leavers):
                row.freed_ms.append(leave(engine, f"{number}.{leaver}", row.steps_s[-1]))
            row.stalls_s.append(bystander.longest_gap_s)
        if row.embeddings and row.longest_input is None:
            row.longest_input = longest_input(engine)


def read(row: Row, engine: RealEngine, number: int) -> None:
    """The speed, and the longest of the steps that others have to wait for."""
    before = engine.cpu_s
    body = {"messages": long_prompt(PROMPT_WORDS, number), "max_tokens": 1, "cache_prompt": False}
    times, timings = progress_of(engine, body)
    row.rates.append(timings["prompt_per_second"])
    row.cpu_rates.append(timings["prompt_n"] / (engine.cpu_s - before))
    row.steps_s.append(max(later - earlier for earlier, later in pairwise(times)))


def leave(engine: RealEngine, seed: str, step_s: float) -> float:
    """Milliseconds from a client's leaving at any moment of a step to its slot being shown free."""
    others = set(engine.tasks())
    body = {"messages": long_prompt(2 * PROMPT_WORDS, seed), "stream": True, "return_progress": True, "max_tokens": 64}
    client = connect(engine.port, {**body, "cache_prompt": False})
    task = engine.new_task(others, generates=False)
    time.sleep(random.Random(seed).uniform(0.1, 0.1 + step_s))
    left_at = time.monotonic()
    client.close()
    wait_until(lambda: task not in engine.tasks())
    return 1000 * (time.monotonic() - left_at)


def longest_input(engine: RealEngine) -> int | None:
    """What llama-server says it takes, when it refuses what is longer."""
    refused = engine.post("/v1/embeddings", {"input": [1000] * LONGEST_INPUT})
    found = LIMIT.search(str(refused))
    return int(found[1]) if found else None


def table(rows: list[Row], title: str) -> Table:
    """Medians, with the best or the worst in brackets."""
    shown = Table(title=f"{title}; {len(rows[0].rates)} round(s)")
    for name in ("batch / physical", "embeddings", "prompt tokens/s (best)", "per CPU second", "a step, s"):
        shown.add_column(name, justify="right")
    for name in ("slot free after, ms (most)", "others stall, s", "longest embedding input"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row.name,
            "yes" if row.embeddings else "no",
            f"{median(row.rates):.0f} ({max(row.rates):.0f})",
            f"{median(row.cpu_rates):.0f}",
            f"{median(row.steps_s):.2f}",
            f"{median(row.freed_ms):.0f} ({max(row.freed_ms):.0f})",
            f"{median(row.stalls_s):.2f}",
            str(row.longest_input or "-"),
        )
    return shown


if __name__ == "__main__":
    typer.run(main)
