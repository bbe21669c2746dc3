"""Sends 200,000 mixed requests through Corral, with random faults and disconnects, and looks for what is left behind.

    python bench/soak.py [--requests 200000] [--seed 1] [--quick]

Corral runs with everything on in front of three stubs; each request, the fault
that meets it and the manners of its client come from the seed and its number.
Every answer is checked to the last token while it runs. At the end nothing may
be left: gauges at 0, descriptors and tasks as at the start, as many lines in
the log as exchanges in the metrics, and memory that no longer grows.
Exits with 0 when all of that holds, else with 1.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral_process import Corral, Stub, raise_descriptor_limit
from soak_checks import Ended, Level, complaints, level_of, over_capacity, slope_bytes
from soak_client import Client, may_reuse
from soak_judge import LEFT, Wrong, judge
from soak_plan import MODEL, REPLICAS, Kind, Manners, Plan, make

QUICK_REQUESTS = 5000
WORKERS = 64
# Of each replica: fewer than workers altogether, so that the queue is used too.
SLOTS = 16
SAMPLE_S = 1.0
# The start is looked at for so long: a watch of a replica opens a connection now and then.
LOOK_S = 6.0
# How long Corral may take to become as it was.
SETTLE_LIMIT_S = 30.0
# What grows in a young process for good reasons: connections, buffers of every size, the allocator's pools. Half of
# the requests are warm-up, and in a run as short as this all of them.
SHORT_REQUESTS, WARM_UP_MIB = 20_000, 24
# After that: noise, and for each request less than any object that could be left of it.
NOISE_BYTES, LEFT_BYTES = 4 * 1024 * 1024, 16

SETTINGS: dict[str, Any] = {
    "any_model": False,
    "server": {"comment_interval": "300ms", "client_stall": "2s", "body_timeout": "3s", "grace": "5s"},
    # A window of five seconds: what the limit remembers stops growing early.
    "limits": {"requests": 1_000_000, "window": "5s"},
    "queue": {"length": 200, "patience": "20s", "unready_patience": "10s"},
    # Short, as those who run into them hold up a worker; longer than any pause of a stub on a busy machine.
    "timeouts": {
        route: {"connect": "2s", "first_byte": "3s", "between_tokens": "3s", "total": "20s"}
        for route in ("chat", "completions", "embeddings")
    },
    "retries": {"attempts": 4, "backoff": "20ms", "backoff_max": "100ms", "deadline": "3s"},
}

console = Console()


@dataclass(slots=True)
class Soak:
    """What has come of the requests so far. Written by the workers and by ``sample``."""

    plans: Iterator[Plan]
    ended: Ended = field(default_factory=Ended)
    outcomes: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    manners: Counter[Manners] = field(default_factory=Counter)
    levels: list[Level] = field(default_factory=list)
    done: int = 0


def main(
    requests: Annotated[int, typer.Option(min=100, help="How many requests.")] = 200_000,
    seed: Annotated[int, typer.Option(help="The same seed asks for the same.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_REQUESTS} requests.")] = False,
) -> None:
    """Soak Corral."""
    requests = min(requests, QUICK_REQUESTS) if quick else requests
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise_descriptor_limit()
    try:
        with ExitStack() as stack:
            arguments = [("--index", str(index), "--slots", str(SLOTS)) for index in range(REPLICAS)]
            stubs = [stack.enter_context(Stub("soak_upstream.py", *each)) for each in arguments]
            models = [{"name": MODEL, "upstreams": [stub.url for stub in stubs]}]
            corral = stack.enter_context(Corral({**SETTINGS, "models": models}))
            corral.until_ready()
            holds = uvloop.run(run(corral, stubs, requests, seed))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0 if holds else 1)


async def run(corral: Corral, stubs: list[Stub], requests: int, seed: int) -> bool:
    """Send all, wait until Corral is idle, and tell; whether all holds."""
    soak = Soak(make(seed, number) for number in range(requests))
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        bar = progress.add_task("looking at the start")
        before = await look(corral, LOOK_S)
        progress.reset(bar, total=requests, description="soaking")
        began = time.monotonic()
        sampling = asyncio.create_task(sample(soak, corral, lambda: progress.update(bar, completed=soak.done)))
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(work(soak, corral.port))
        seconds = time.monotonic() - began
        sampling.cancel()
        progress.update(bar, completed=requests, description="waiting until nothing is left")
        after = await settle(corral, before, soak)
    wrong = over_capacity(stubs) + complaints(before, after, soak.ended, corral)
    return report(soak, before, after, wrong, requests / seconds)


async def work(soak: Soak, port: int) -> None:
    """One request after another, over the same connection where both sides keep it."""
    client: Client | None = None
    for plan in soak.plans:
        if client is None or not may_reuse(client, plan):
            if client is not None:
                part(soak, client)
            client = await Client.connect(port, slow=plan.manners in (Manners.SLOW, Manners.STUCK))
        await exchange(soak, client, plan)
        if plan.manners is not Manners.PATIENT:
            client.leave()
    if client is not None:
        part(soak, client)


def part(soak: Soak, client: Client) -> None:
    """Be done with a client, whose connection may be over already."""
    if client.astray:
        soak.ended.wrong.append("bytes came behind a complete answer")
    if client.open:
        client.leave()


async def exchange(soak: Soak, client: Client, plan: Plan) -> None:
    """One request: its answer, whether it is right, and how it counts."""
    answer = await client.ask(plan)
    try:
        outcome = judge(plan, answer)
    except Wrong as wrong:
        outcome = "WRONG"
        soak.ended.wrong.append(
            f"{plan.request_id} ({plan.kind.title}, {plan.manners.value}, {plan.fault.name}): {wrong}"
        )
    if outcome != LEFT and plan.kind is not Kind.MODELS:
        soak.ended.told[plan.request_id] = (answer.status, outcome)
    soak.outcomes[plan.kind, outcome] += 1
    soak.faults[plan.fault.name] += 1
    soak.manners[plan.manners] += 1
    soak.done += 1


async def look(corral: Corral, seconds: float) -> list[Level]:
    """How Corral stands while nobody asks it anything, sampled for so long."""
    levels = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        levels.append(await asyncio.to_thread(level_of, corral, 0))
        await asyncio.sleep(LOOK_S / 10)
    return levels


async def sample(soak: Soak, corral: Corral, show: Callable[[], None]) -> None:
    """Note how Corral stands, again and again, until cancelled."""
    while True:
        soak.levels.append(await asyncio.to_thread(level_of, corral, soak.done))
        show()
        await asyncio.sleep(SAMPLE_S)


async def settle(corral: Corral, before: list[Level], soak: Soak) -> Level:
    """Corral as it stands once it is as it was before, or when that has not come."""
    until = time.monotonic() + SETTLE_LIMIT_S
    while True:
        level = await asyncio.to_thread(level_of, corral, soak.done)
        if level.as_quiet_as(before) or time.monotonic() > until:
            return level
        await asyncio.sleep(LOOK_S / 10)


def report(soak: Soak, before: list[Level], after: Level, wrong: list[str], rate: float) -> bool:
    """Print what came of the requests, how Corral stood, and the verdict."""
    console.print(outcome_table(soak))
    console.print(level_table(soak, before, after))
    told = (f"{name or 'none'} {count}" for name, count in soak.faults.most_common())
    console.print(f"faults: {', '.join(told)}", highlight=False, soft_wrap=True)
    told = (f"{each.value} {count}" for each, count in soak.manners.most_common())
    console.print(f"clients: {', '.join(told)}", highlight=False, soft_wrap=True)
    grown, complaint = memory_growth(soak, before[-1], after)
    wrong = complaint + wrong
    for each in wrong[:20]:
        console.print(f"wrong: {each}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{'falls short' if wrong else 'holds'}: {soak.done} requests at {rate:.0f}/s, "
        f"{len(soak.ended.wrong)} wrong answers, {len(wrong)} complaints, "
        f"{after.exchanges:.0f} exchanges with {soak.ended.lines} log lines, "
        f"memory {before[-1].memory_mib:.1f} MiB at the start, {after.memory_mib:.1f} at the end, "
        f"{grown}, {after.descriptors:.0f} descriptors and "
        f"{after.tasks:.0f} tasks left of {before[-1].descriptors:.0f} and {before[-1].tasks:.0f}",
        highlight=False,
        soft_wrap=True,
    )
    return not wrong


def memory_growth(soak: Soak, before: Level, after: Level) -> tuple[str, list[str]]:
    """How memory grew, in words, and the complaint if that is too much."""
    if soak.done < SHORT_REQUESTS:
        told = f"all of it warm-up ({WARM_UP_MIB} MiB at most)"
        return told, [f"memory: {told}"] if after.memory_mib - before.memory_mib > WARM_UP_MIB else []
    half = soak.done / 2
    slope = slope_bytes([*(level for level in soak.levels if level.done >= half), after])
    limit = NOISE_BYTES / half + LEFT_BYTES
    told = f"{slope:+.1f} bytes a request in the second half ({limit:.0f} at most)"
    return told, [f"memory: {told}"] if slope > limit else []


def outcome_table(soak: Soak) -> Table:
    outcomes = sorted({outcome for _, outcome in soak.outcomes})
    shown = Table(title="requests")
    for name in ("", *outcomes):
        shown.add_column(name, justify="right" if name else "left")
    for kind in Kind:
        shown.add_row(kind.title, *(str(soak.outcomes[kind, outcome]) for outcome in outcomes))
    shown.add_section()
    totals = (sum(soak.outcomes[kind, outcome] for kind in Kind) for outcome in outcomes)
    shown.add_row("all", *map(str, totals))
    return shown


def level_table(soak: Soak, before: list[Level], after: Level) -> Table:
    """Corral at the start, after a quarter, in the middle and at the end."""

    def at(share: float) -> Level:
        return min(soak.levels, key=lambda level: abs(level.done - share * soak.done))

    shown = Table(title="Corral")
    for name in ("", "requests", "memory, MiB", "descriptors", "tasks", "busy", "series"):
        shown.add_column(name, justify="right" if name else "left")
    rows = [
        ("start", before[-1]),
        ("a quarter", at(0.25)),
        ("middle", at(0.5)),
        ("nearly", at(1)),
        ("end", after),
    ]
    for name, level in rows:
        figures = (level.descriptors, level.tasks, level.busy, level.series)
        shown.add_row(name, str(level.done), f"{level.memory_mib:.1f}", *(f"{each:.0f}" for each in figures))
    return shown


if __name__ == "__main__":
    typer.run(main)
