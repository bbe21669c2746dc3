"""Measures what threads, batch and slots are worth on this machine.

    python bench/cpu_tuning.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf [--quick]

Each row of the table is one llama-server, started the way Corral starts it. The
rates are llama-server's own (``timings`` in its replies). Rounds go over all
rows before the next begins, so that a busy minute does not fall on one row; the
best round is what the machine can do, the median what it did. Ctrl-C shows what
has been measured so far.
"""

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.upstream.argv import engine_command, llama_argv, llama_environment
from corral.upstream.spec import EngineSpec

CORES = os.cpu_count() or 1
THREADS = sorted({max(1, CORES // 4), max(1, CORES // 2), max(1, CORES - 2), CORES, 2 * CORES})
BATCHES = (64, 128, 512, 1024, 2048)
SLOTS = (1, 2, 4, 8)

PROMPT_WORDS = 1000
GENERATED_TOKENS = 48
# Twice the words are more than any tokenizer makes of them.
CONTEXT = 2 * PROMPT_WORDS + GENERATED_TOKENS

START_LIMIT_S = 600.0
REPLY_LIMIT_S = 1800.0
STOP_LIMIT_S = 10.0
LOOK_S = 0.1

WORDS = (
    "horse",
    "gate",
    "barn",
    "hay",
    "field",
    "rider",
    "saddle",
    "river",
    "dust",
    "fence",
    "mare",
    "stable",
    "grass",
)

console = Console()


@dataclass(slots=True)
class Row:
    """One way to start llama-server, and what it reached. Written by ``measure``."""

    varied: str
    threads: int
    batch: int
    slots: int
    prompt_rates: list[float] = field(default_factory=list)
    generation_rates: list[float] = field(default_factory=list)
    seconds_of_step: list[float] = field(default_factory=list)


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file.")],
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rows, one round.")] = False,
    server_bin: Annotated[Path | None, typer.Option(help="The llama-server; else as Corral finds one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Start llama-server in different ways and measure prompt tokens/s and generated tokens/s."""
    rows = quick_plan() if quick else plan()
    rounds = 1 if quick else rounds
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        console=Console(stderr=True),
    )
    # Ctrl-C ends it early; what has been measured is shown, and no llama-server stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), progress:
        task = progress.add_task("measuring", total=rounds * len(rows))
        for number, row in product(range(rounds), rows):
            progress.update(task, description=f"threads {row.threads}, batch {row.batch}, slots {row.slots}")
            measure(row, spec_of(model, row, server_bin), seed=number)
            progress.advance(task)
    rows = [row for row in rows if row.generation_rates]
    if as_json:
        print(json.dumps([{name: getattr(row, name) for name in Row.__slots__} for row in rows]))
    elif rows:
        console.print(table(rows, model.name))


def plan() -> list[Row]:
    """One thing varies at a time; the others are what Corral starts with on this machine."""
    return [
        *(Row("threads", threads, 1024, 1) for threads in THREADS),
        *(Row("batch", CORES, batch, 1) for batch in BATCHES),
        *(Row("slots", CORES, 1024, slots) for slots in SLOTS),
    ]


def quick_plan() -> list[Row]:
    """The rows that say most."""
    threads = sorted({max(1, CORES // 2), CORES})
    return [
        *(Row("threads", each, 1024, 1) for each in threads),
        *(Row("batch", CORES, batch, 1) for batch in (128, 2048)),
        Row("slots", CORES, 1024, 4),
    ]


def spec_of(model: Path, row: Row, server_bin: Path | None) -> EngineSpec:
    """How Corral would start it; each slot has the whole of the context that is measured."""
    return EngineSpec(
        name="measured",
        file=model,
        threads=row.threads,
        threads_batch=row.threads,
        ctx=CONTEXT * row.slots,
        n_batch=row.batch,
        parallel=row.slots,
        server_bin=server_bin,
    )


def measure(row: Row, spec: EngineSpec, seed: int) -> None:
    """One long prompt alone, then a generation in every slot at once."""
    words = random.Random(seed)
    with running(spec) as url:
        complete(url, "warm up", 4)
        read = complete(url, " ".join(words.choices(WORDS, k=PROMPT_WORDS)), 1)
        row.prompt_rates.append(read["prompt_per_second"])
        row.seconds_of_step.append(min(row.batch, read["prompt_n"]) / read["prompt_per_second"])
        prompts = [f"{number} {words.choice(WORDS)}" for number in range(row.slots)]
        with ThreadPoolExecutor(row.slots) as pool:
            written = list(pool.map(lambda prompt: complete(url, prompt, GENERATED_TOKENS), prompts))
        row.generation_rates.append(sum(each["predicted_per_second"] for each in written))


def complete(url: str, prompt: str, tokens: int) -> dict[str, float]:
    """llama-server's timings of one completion that uses no cache and ends at ``tokens``."""
    fields = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    reply = ask(f"{url}/v1/completions", json.dumps(fields).encode())
    timings: dict[str, float] = reply["timings"]
    return timings


def ask(url: str, body: bytes | None = None) -> dict[str, Any]:
    """The JSON that a URL answers with."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=REPLY_LIMIT_S) as reply:
        document: dict[str, Any] = json.load(reply)
    return document


@contextmanager
def running(spec: EngineSpec) -> Iterator[str]:
    """The URL of a llama-server that is ready; it is stopped when the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    engine = engine_command(spec.server_bin)
    command = [*engine, *llama_argv(spec, port, engine)]
    process = subprocess.Popen(command, env=llama_environment(os.environ, None), stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return when /health says so; end the program when llama-server does not start."""
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        try:
            ask(f"{url}/health")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(LOOK_S)
        else:
            return
    raise SystemExit(f"llama-server does not start; try it by hand: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]  # always a list here


def table(rows: list[Row], model: str) -> Table:
    """Best round, median in brackets."""
    shown = Table(title=f"{model} on {CORES} cores, {len(rows[0].prompt_rates)} round(s): best (median)")
    for name in ("varied", "threads", "batch", "slots", "prompt tokens/s", "generated tokens/s", "a step, s"):
        shown.add_column(name, justify="left" if name == "varied" else "right")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.varied != row.varied:
            shown.add_section()
        rates = (both(row.prompt_rates), both(row.generation_rates), f"{min(row.seconds_of_step):.2f}")
        shown.add_row(row.varied, str(row.threads), str(row.batch), str(row.slots), *rates)
    shown.caption = (
        "Generated tokens are those of all slots together. A step is the time in which one batch of a prompt is read: "
        "the other slots wait for it."
    )
    return shown


def both(rates: list[float]) -> str:
    return f"{max(rates):.0f} ({median(rates):.0f})"


if __name__ == "__main__":
    typer.run(main)
