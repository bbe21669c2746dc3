"""What a store of keys and usage costs on the way of a request: CPU with one over CPU with keys of the environment.

    python bench/store_cost.py [--rows whole16,streams] [--pairs 20] [--quick]

Two Corrals on one core, the load and the stub of `make bench` on another; they are measured in turns, and the ratio
is that of neighbours in time. Each pair is started anew, since two processes of the same program may differ for as
long as they live, by how their memory lies. The interval holds the median of the ratios with a confidence of 95 %
(binomial, without any assumption about their distribution). The last line says whether the way of a request, which is
what Corral's own process takes, costs at most 5 % more. What the process takes that writes the store, off that way
and at a lower priority, stands beside it in the table. Ctrl-C shows what has been measured so far.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from math import comb
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from compare.machine import choose_cores
from compare.measure import Bench
from compare.peers import CORRAL_BIN, Place, corral_env
from compare.processes import Running, free_port, running
from compare.rows import ROWS, Row
from run import compiled

MOST = 1.05
# What is judged, and what is told beside it.
OWN, ALL = "Corral", "with what writes the store"
CONFIDENCE = 0.95
WARM_UP_S = 0.7

# By the row and whose time it is: the ratio of each pair; and what was measured without a store and with one.
Ratios = dict[tuple[str, str], list[float]]
Spent = dict[tuple[str, str], tuple[list[float], list[float]]]

console = Console()


def main(
    rows: Annotated[str, typer.Option(help=f"Rows, by commas: {', '.join(row.name for row in ROWS)}.")] = (
        "whole16,streams"
    ),
    pairs: Annotated[int, typer.Option(min=6, help="Measurements of each, in turns.")] = 20,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 2.5,
    quick: Annotated[bool, typer.Option("--quick", help="8 pairs of one second, of the first row.")] = False,
) -> None:
    """Measure Corral with a store and without one, in turns."""
    names = rows.split(",")
    chosen = [row for row in ROWS if row.name in names]
    if len(chosen) != len(names):
        raise typer.BadParameter("there is no such row", param_hint="--rows")
    if quick:
        pairs, seconds, chosen = 8, 1.0, chosen[:1]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ratios: Ratios = {(row.name, scope): [] for row in chosen for scope in (OWN, ALL)}
    spent: Spent = {of: ([], []) for of in ratios}
    with suppress(KeyboardInterrupt):
        measure(chosen, pairs, seconds, ratios, spent)
    console.print(shown(ratios, spent))
    sys.exit(judge(ratios))


def measure(rows: Sequence[Row], pairs: int, seconds: float, ratios: Ratios, spent: Spent) -> None:
    """Fill in what each row costs without the store and with it, and the ratio of each pair."""
    cores = choose_cores()
    # On two cores the measuring itself sits with the load, not with Corral.
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {cores.proxy})
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), refresh_per_second=2,
    )  # fmt: skip
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-bench-")))
        stub_bin, load_bin = (compiled(name, directory) for name in ("stub", "load"))
        stub_port = free_port()
        stub = stack.enter_context(
            running(
                [str(stub_bin), "--port", str(stub_port)],
                stub_port,
                cores=[cores.load],
                directory=made(directory / "stub.d"),
            )
        )
        bench = Bench(load_bin, stub.pid, cores)
        stack.enter_context(progress)
        task = progress.add_task("starting", total=len(rows) * pairs * 2)
        for number in range(pairs):
            sides = ("plain", "store") if number % 2 == 0 else ("store", "plain")
            with ExitStack() as pair:
                up = {name: start(pair, bench, stub_port, directory / f"{name}-{number}") for name in sides}
                for row in rows:
                    found = {}
                    for name in sides:
                        progress.update(task, description=f"{row.name}, {name}", advance=1)
                        cpu_us(bench, row, *up[name], WARM_UP_S)
                        found[name] = cpu_us(bench, row, *up[name], seconds)
                    note(row, found["plain"], found["store"], ratios, spent)


def note(row: Row, plain: dict[str, float], store: dict[str, float], ratios: Ratios, spent: Spent) -> None:
    """Keep what a pair has taken."""
    for scope in (OWN, ALL):
        spent[row.name, scope][0].append(plain[scope])
        spent[row.name, scope][1].append(store[scope])
        ratios[row.name, scope].append(store[scope] / plain[scope])


def start(stack: ExitStack, bench: Bench, stub_port: int, directory: Path) -> tuple[Running, str | None]:
    """A Corral, and the key to use if it is one of its store."""
    place = Place(made(directory), free_port(), stub_port)
    env, key = corral_env(place), None
    if directory.name.startswith("store"):
        made_key = [str(CORRAL_BIN), "keys", "create", "--client", "bench", "--json"]
        told = subprocess.run(made_key, cwd=directory, capture_output=True, text=True, check=True)
        key = json.loads(told.stdout)["secret"]
    command = [str(CORRAL_BIN), "serve"]
    up = running(command, place.port, cores=[bench.cores.proxy], directory=directory, env=env)
    return stack.enter_context(up), key


def cpu_us(bench: Bench, row: Row, up: Running, key: str | None, seconds: float) -> dict[str, float]:
    """CPU of one request, in microseconds: of Corral's own process, and of all that it has started too."""
    arguments = list(row.arguments(up.port, seconds, 0))
    if key is not None:
        arguments[arguments.index("--key") + 1] = key
    sample = bench.sampled(arguments, up.pid)
    if sample["errors"]:
        raise SystemExit(f"{sample['errors']} of {sample['requests']} requests failed: {sample.get('why')}")
    return {OWN: float(sample["alone_us"]), ALL: float(sample["cpu_us"])}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies: the order statistics that enclose it with the confidence, or the widest there are."""
    ordered, count = sorted(values), len(values)
    below = 0
    while 2 * sum(comb(count, k) for k in range(below + 1)) / 2**count <= 1 - CONFIDENCE:
        below += 1
    first = max(0, below - 1)
    return ordered[first], ordered[count - 1 - first]


def shown(ratios: Ratios, spent: Spent) -> Table:
    table = Table(title="CPU of a request")
    for column in ("row", "of", "pairs", "without, µs", "with a store, µs", "ratio", "95 % of its median"):
        table.add_column(column, justify="left" if column in ("row", "of") else "right")
    for (name, scope), values in ratios.items():
        if values:
            least, most = interval(values)
            plain, store = (f"{median(side):.1f}" for side in spent[name, scope])
            table.add_row(
                name, scope, str(len(values)), plain, store, f"{median(values):.3f}", f"{least:.3f} – {most:.3f}"
            )
    return table


def judge(ratios: Ratios) -> int:
    """Say whether it holds; the exit code."""
    own = {name: values for (name, scope), values in ratios.items() if scope == OWN}
    measured = {name: values for name, values in own.items() if len(values) > 1}
    holds = len(measured) == len(own) and all(median(values) <= MOST for values in measured.values())
    figures = ", ".join(
        f"{name} {median(values):.3f} ({interval(values)[0]:.3f} – {interval(values)[1]:.3f})"
        for name, values in measured.items()
    )
    verdict = "holds" if holds else "falls short"
    console.print(
        f"{verdict}: CPU of a request with a store over that without: {figures or 'nothing measured'} (limit {MOST})",
        soft_wrap=True,
    )
    return 0 if holds else 1


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


if __name__ == "__main__":
    typer.run(main)
