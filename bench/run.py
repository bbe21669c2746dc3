"""Compares Corral with its peers in one run: ``make bench``, or ``python bench/run.py --help``.

bench/README.md says what is measured and how. Ctrl-C ends it early and leaves nothing behind.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compare.machine import choose_cores, machine
from compare.measure import FEWER_STREAMS, MANY_STREAMS, Bench
from compare.model import measure_model
from compare.peers import BENCH, BY_NAME, DIRECT, LABELS, PEERS, ROOT, ROUTERS, Peer, Place
from compare.processes import NotStarted, Running, free_port, running
from compare.report import show, write_docs
from compare.rows import ROWS, Row

RESULTS = BENCH / "results"
DOCS = ROOT / "docs"
MODEL_FILE = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"

SPECIAL = ("memory", "start", "model")
# A fixed rate is this share of what the slowest of Corral and the Rust routers reached in the warm-up.
SHARE_OF_RATE = 0.3
WARM_UP_S = 1.0
IDLE_S = 2.0
STARTS = 5

console = Console(stderr=True)


@dataclass(slots=True)
class Plan:
    """What this run measures."""

    peers: list[Peer]
    rows: list[Row]
    special: set[str]
    seconds: float
    repeat: int

    def repetitions(self, name: str) -> int:
        slow = name in BY_NAME and BY_NAME[name].slow
        return (self.repeat + 1) // 2 if slow else self.repeat


@dataclass(slots=True)
class Run:
    """What has been measured so far. Written by the functions below."""

    plan: Plan
    bench: Bench
    stub: int
    progress: Progress
    told: dict[str, Any]
    up: dict[str, Running] = field(default_factory=dict)

    def step(self, what: str) -> None:
        for task in self.progress.task_ids:
            self.progress.update(task, description=what, advance=1)


def main(
    only: Annotated[str, typer.Option(help=f"Peers, by commas: {', '.join(BY_NAME)}.")] = "",
    rows: Annotated[
        str, typer.Option(help=f"Rows, by commas: {', '.join([row.name for row in ROWS] + [*SPECIAL])}.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 2.5,
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of each row; slow peers have half as many.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Some minutes: two short measurements of each row.")] = False,
    docs: Annotated[bool | None, typer.Option(help="Write docs/benchmarks.md; without it, full runs do.")] = None,
    render: Annotated[Path | None, typer.Option(help="Measure nothing: show the figures of this JSON.")] = None,
) -> None:
    """Start the stub and all peers, measure every row in turns, and show the medians."""
    if render is None:
        plan = _plan(only, rows, 1.0 if quick else seconds, 2 if quick else repeat)
        told = measure(plan)
        full = not (only or rows or quick)
    else:
        told, full = json.loads(render.read_text()), False
    show(told, Console())
    directory = DOCS if (full if docs is None else docs) else RESULTS
    console.print(f"written: {write_docs(told, directory)}", highlight=False)


def _plan(only: str, rows: str, seconds: float, repeat: int) -> Plan:
    names, wanted = _listed(only), _listed(rows)
    unknown = (set(names) - set(BY_NAME)) | (set(wanted) - {row.name for row in ROWS} - set(SPECIAL))
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}")
    return Plan(
        peers=[peer for peer in PEERS if not names or peer.name in names],
        rows=[row for row in ROWS if not wanted or row.name in wanted],
        special={name for name in SPECIAL if not wanted or name in wanted},
        seconds=seconds,
        repeat=repeat,
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def measure(plan: Plan) -> dict[str, Any]:
    """All figures; what was measured until Ctrl-C, when that comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _allow_many_files()
    cores, allowed = choose_cores(), sorted(os.sched_getaffinity(0))
    # On two cores the measuring itself sits with the load, not with the proxy.
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {cores.proxy})
    command = shlex.join(["bench/run.py", *sys.argv[1:]])
    told: dict[str, Any] = {"machine": machine(), "command": command, "absent": {}, "rows": {}}
    told |= {"seconds": plan.seconds, "repeat": plan.repeat}
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        console=console,
        # Drawing takes time from the load's core.
        refresh_per_second=2,
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-bench-")))
        stub_bin, load_bin = (compiled(name, directory) for name in ("stub", "load"))
        stub_port = free_port()
        (directory / "stub.d").mkdir()
        stub = stack.enter_context(
            running(
                [str(stub_bin), "--port", str(stub_port)], stub_port, cores=[cores.load], directory=directory / "stub.d"
            )
        )
        stack.enter_context(progress)
        run = Run(plan, Bench(load_bin, stub.pid, cores), stub_port, progress, told)
        progress.add_task("starting", total=_steps(plan))
        try:
            _measure_peers(run, directory)
        except KeyboardInterrupt:
            told["command"] += "  (ended early)"
        if "model" in plan.special and "ended early" not in told["command"]:
            run.step("a real model")
            told["model"] = measure_model(MODEL_FILE, load_bin, directory, allowed, quick=plan.repeat < 3)
    return told


def _measure_peers(run: Run, directory: Path) -> None:
    """Start the peers, leave them up side by side, and go through the rows."""
    with ExitStack() as stack:
        for peer in run.plan.peers:
            _start(run, peer, directory, stack)
        if run.plan.rows:
            rates = _warm_up(run)
            for row in run.plan.rows:
                _measure_row(run, row, rates)
        if "memory" in run.plan.special:
            _measure_memory(run)
    if "start" in run.plan.special and "corral" in run.up:
        _measure_start(run, directory)


def _start(run: Run, peer: Peer, directory: Path, stack: ExitStack) -> None:
    """Start a peer; one that cannot be is named with its reason."""
    run.step(f"starting {peer.label}")
    why = peer.absent()
    if why is None:
        try:
            up = stack.enter_context(_running(run, peer, directory / peer.name))
        except NotStarted as error:
            why = str(error)
    if why is not None:
        run.told["absent"][peer.name] = why
        console.print(f"{peer.label} is left out: {why}", highlight=False, markup=False)
        return
    run.up[peer.name] = up
    run.told.setdefault("versions", {})[peer.name] = peer.told_version()
    run.told.setdefault("start", {})[peer.name] = [up.start_s]
    run.told.setdefault("idle", {})[peer.name] = run.bench.idle(up.pid, IDLE_S)


def _running(run: Run, peer: Peer, directory: Path) -> Any:  # noqa: ANN401  (a context manager)
    directory.mkdir(exist_ok=True)
    place = Place(directory, free_port(), run.stub)
    env = peer.env(place)
    return running(peer.command(place), place.port, cores=[run.bench.cores.proxy], directory=directory, env=env)


def _warm_up(run: Run) -> dict[str, float]:
    """Let everybody run warm; from it come the rates of the rows with a fixed one."""
    base = [row for row in ROWS if row.name in ("whole16", "streams")]
    reached: dict[str, list[float]] = {row.name: [] for row in base}
    for row in base:
        for name, up in run.up.items():
            run.step(f"warming up {LABELS[name]}")
            sample = run.bench.sample(row, up.port, up.pid, WARM_UP_S)
            if name in ("corral", *ROUTERS) or len(run.up) == 1:
                reached[row.name].append(sample["rate"])
    return {name: max(10.0, round(min(rates, default=100.0) * SHARE_OF_RATE, -1)) for name, rates in reached.items()}


def _measure_row(run: Run, row: Row, rates: dict[str, float]) -> None:
    """Take turns: all peers, then all of them again the other way round."""
    samples: dict[str, list[Any]] = {name: [] for name in (DIRECT, *run.up)}
    run.told["rows"][row.name] = samples
    for repetition in range(run.plan.repeat):
        names = [name for name in samples if repetition < run.plan.repetitions(name)]
        for name in names if repetition % 2 == 0 else reversed(names):
            run.step(f"{row.name}, {LABELS[name]}")
            up = run.up.get(name)
            port, root = (up.port, up.pid) if up else (run.stub, None)
            rate = rates[row.below] if row.below else 0
            samples[name].append(run.bench.sample(row, port, root, run.plan.seconds, rate))


def _measure_memory(run: Run) -> None:
    for name, up in run.up.items():
        streams = FEWER_STREAMS if BY_NAME[name].slow else MANY_STREAMS
        run.step(f"{streams} streams, {LABELS[name]}")
        run.told.setdefault("memory", {})[name] = run.bench.memory_of_streams(up.port, up.pid, streams)


def _measure_start(run: Run, directory: Path) -> None:
    """Corral alone is started more often; for the others one start has to do."""
    for _ in range(STARTS - 1):
        run.step("starting Corral")
        with _running(run, BY_NAME["corral"], directory / "corral-again") as up:
            run.told["start"]["corral"].append(up.start_s)


def _steps(plan: Plan) -> int:
    rows = sum(plan.repetitions(name) for name in chain([DIRECT], (peer.name for peer in plan.peers)))
    warm_up = 2 * len(plan.peers) if plan.rows else 0
    special = len(plan.peers) * ("memory" in plan.special) + (STARTS - 1) * ("start" in plan.special)
    return len(plan.peers) + warm_up + len(plan.rows) * rows + special + ("model" in plan.special)


def compiled(name: str, directory: Path) -> Path:
    """A C program of ours, compiled."""
    compiler, source = os.environ.get("CC", "cc"), BENCH / f"{name}.c"
    try:
        subprocess.run([compiler, "-O2", "-o", str(directory / name), str(source)], check=True)
    except FileNotFoundError:
        raise SystemExit(
            f"the benchmark needs a C compiler ({compiler}): install gcc or clang, or name it in CC"
        ) from None
    return directory / name


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    typer.run(main)
