"""The load generator behind ``corral bench`` and ``scripts/load_test.py``: real HTTP to a live server."""

import asyncio
from collections.abc import Callable, Iterator
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from corral.load.plan import Plan, check
from corral.load.report import Report, Sample, table
from corral.load.request import ask
from corral.upstream.wire import Client

__all__ = ["Plan", "run_load"]

# What a shell expects of a program that Ctrl-C ended.
INTERRUPTED = 130


def run_load(plan: Plan, console: Console, *, as_json: bool = False) -> int:
    """Send the plan's requests, print what was measured, and return the exit code: 1 when one failed.

    ``as_json`` prints one JSON object and nothing else. Ctrl-C prints what was
    measured up to then and returns 130. Raises ConfigError for a plan that
    cannot be carried out.
    """
    check(plan)
    samples: list[Sample] = []
    started = perf_counter()
    interrupted = False
    with _bar(console, hidden=as_json) as progress:
        task = progress.add_task("sending", total=plan.requests, failed=0)

        def tell() -> None:
            failed = sum(not sample.ok for sample in samples)
            progress.update(task, completed=len(samples), failed=failed)

        try:
            asyncio.run(_send_all(plan, samples, tell))
        except KeyboardInterrupt:
            interrupted = True
    report = Report.of(plan, samples, perf_counter() - started, interrupted=interrupted)
    if as_json:
        console.out(report.as_json(), highlight=False)
    else:
        console.print(table(report))
    return INTERRUPTED if interrupted else int(report.failed > 0)


def _bar(console: Console, *, hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
    )


async def _send_all(plan: Plan, samples: list[Sample], tell: Callable[[], None]) -> None:
    """Keep ``plan.concurrency`` requests under way until all are sent; ``samples`` grows as they end."""
    client = Client(max_idle=plan.concurrency)
    turns = iter(range(plan.requests))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(plan.concurrency, plan.requests)):
                group.create_task(_send_in_turn(client, plan, turns, samples, tell))
    finally:
        await client.close()


async def _send_in_turn(
    client: Client, plan: Plan, turns: Iterator[int], samples: list[Sample], tell: Callable[[], None]
) -> None:
    for _ in turns:
        samples.append(await ask(client, plan))
        tell()
