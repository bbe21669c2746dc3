"""Holds 2,000 streams open through Corral, and measures how late each token comes and what a stream takes of memory.

    python bench/many_streams.py [--streams 2000] [--pace-ms 400] [--seconds 30] [--quick]

Three processes: a stub that writes into each token when it was sent, Corral,
and this one, which reads them. First all streams go directly to the stub, then
through Corral; the difference is what Corral adds. While they go through
Corral, a few still go directly: what those are late by is the machine's doing.
Exits with 0 when it holds what Corral promises, else with 1.
"""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from corral_process import KEY, Corral, Stub, raise_descriptor_limit

# What Corral promises for this many streams on an otherwise idle machine.
ADDED_P99_LIMIT_MS = 25.0
MEMORY_LIMIT_BYTES = 30 * 1024

# Directly to the stub while the others go through Corral.
DIRECT_BESIDE = 50
# Before the memory is read for the first time: what the first exchange loads stays for all of them.
WARM_UP_STREAMS = 20
WARM_UP_TOKENS = 3
# New streams a second: their beginnings are no part of the question.
OPENED_A_SECOND = 1000
# At the end each stream may be this much later than its pace says.
PATIENCE_S = 30.0
SETTLE_S = 2.0

TOKEN = re.compile(rb'"content":"(\d+):(\d+)"')
DONE = b"data: [DONE]\n\n"
EVENT_END = b"\n\n"

console = Console()


class Stream(asyncio.Protocol):
    """One stream from its request to its end. Written by its own callbacks."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._rest = b""
        self.done = False
        # When a token was sent, and by how much later it was here, in nanoseconds.
        self.sent_ns: list[int] = []
        self.late_ns: list[int] = []
        # Numbers that came out of their order.
        self.astray = 0
        self.fault = ""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.sent_ns and not data.startswith(b"HTTP/1.1 200") and not self._rest:
            self.fault = data[:300].decode("latin-1")
        events, end, rest = (self._rest + data).rpartition(EVENT_END)
        self._rest = rest
        for number, sent in TOKEN.findall(events):
            self.astray += int(number) != len(self.sent_ns)
            self.sent_ns.append(int(sent))
            self.late_ns.append(now - int(sent))
        if events.endswith(DONE.removesuffix(EVENT_END)) and end:
            self.done = True
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass(slots=True)
class Phase:
    """What one set of streams came to. Written by ``measure``."""

    name: str
    streams: list[Stream] = field(default_factory=list)
    # Tokens sent before all streams were open count as come, but not in the times.
    all_open_ns: int = 0

    def times_ms(self) -> list[float]:
        late = (
            late
            for stream in self.streams
            for sent, late in zip(stream.sent_ns, stream.late_ns, strict=True)
            if sent >= self.all_open_ns
        )
        return sorted(each / 1e6 for each in late)

    def lost(self, tokens: int) -> int:
        """Tokens that did not come, came out of order, or whose stream has no end."""
        return sum(tokens - len(each.sent_ns) + each.astray + (not each.done) for each in self.streams)


@dataclass(slots=True)
class Memory:
    """Corral's resident memory, and what else the streams took. Written by ``through_corral``."""

    idle: float = 0
    busy: float = 0
    after: float = 0
    in_flight: float = 0
    tasks: float = 0
    descriptors: float = 0
    kernel_bytes: int | None = None


def main(
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 2000,
    pace_ms: Annotated[float, typer.Option(min=1, help="Milliseconds from one token to the next.")] = 400,
    seconds: Annotated[float, typer.Option(min=1, help="How long each set of streams lasts.")] = 30,
    quick: Annotated[bool, typer.Option("--quick", help="500 streams, 6 seconds.")] = False,
) -> None:
    """Measure many streams at once."""
    if quick:
        streams, seconds = min(streams, 500), min(seconds, 6)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A stream takes two in Corral, and one here.
    if raise_descriptor_limit() < 3 * streams:
        raise SystemExit(f"too few file descriptors for {streams} streams; raise the hard limit (ulimit -Hn)")
    tokens = max(2, round(seconds * 1000 / pace_ms))
    slots = str(2 * (streams + DIRECT_BESIDE))
    settings = {"limits": {"requests": 0}, "queue": {"length": streams}}
    try:
        with Stub("paced_stub.py", "--slots", slots, "--pace-ms", str(pace_ms)) as stub:
            model = {"name": "paced", "upstream": stub.url}
            with Corral({**settings, "models": [model]}) as corral:
                corral.until_ready()
                holds = uvloop.run(measure_all(stub, corral, streams, tokens))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0 if holds else 1)


async def measure_all(stub: Stub, corral: Corral, streams: int, tokens: int) -> bool:
    """All sets of streams one after another; prints what they came to, and whether it holds."""
    direct, beside, through = Phase("direct"), Phase("direct, beside"), Phase("through Corral")
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
    with progress:
        bar = progress.add_task("direct", total=2 * streams * tokens)

        def show(phase: Phase) -> None:
            come = sum(len(stream.sent_ns) for each in (direct, through) for stream in each.streams)
            progress.update(bar, completed=come, description=phase.name)

        await measure(direct, stub.port, streams, tokens, lambda: show(direct))
        memory = await through_corral(through, beside, stub, corral, streams, tokens, lambda: show(through))
    return report([direct, beside, through], memory, tokens)


async def through_corral(
    through: Phase, beside: Phase, stub: Stub, corral: Corral, streams: int, tokens: int, show: Callable[[], None]
) -> Memory:
    """The streams through Corral; its memory before, during and after."""
    memory = Memory()
    await measure(Phase("warm-up"), corral.port, WARM_UP_STREAMS, WARM_UP_TOKENS, lambda: None)
    await asyncio.sleep(SETTLE_S)
    memory.idle = (await asyncio.to_thread(corral.scrape)).total("process_resident_memory_bytes")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(measure(through, corral.port, streams, tokens, show))
        tasks.create_task(measure(beside, stub.port, DIRECT_BESIDE, tokens, lambda: None))
        middle = tokens // 2
        while sum(len(each.sent_ns) >= middle for each in through.streams) < streams // 2:
            if through.streams and all(each.ended.done() for each in through.streams):
                break
            await asyncio.sleep(0.1)
        busy = await asyncio.to_thread(corral.scrape)
        memory.kernel_bytes = await asyncio.to_thread(kernel_buffers, corral.port, stub.port)
    memory.busy = busy.total("process_resident_memory_bytes")
    memory.in_flight = busy.total("corral_exchanges_in_flight")
    memory.tasks = busy.total("corral_event_loop_tasks")
    memory.descriptors = busy.total("process_open_fds")
    await asyncio.sleep(SETTLE_S)
    memory.after = (await asyncio.to_thread(corral.scrape)).total("process_resident_memory_bytes")
    return memory


async def measure(phase: Phase, port: int, streams: int, tokens: int, show: Callable[[], None]) -> None:
    """Open so many streams, evenly, and wait until each has ended."""
    loop = asyncio.get_running_loop()
    request = request_of(tokens)
    begin = loop.time()
    for number in range(streams):
        await asyncio.sleep(max(0.0, begin + number / OPENED_A_SECOND - loop.time()))
        _, stream = await loop.create_connection(lambda: Stream(request), "127.0.0.1", port)
        phase.streams.append(stream)
    phase.all_open_ns = time.monotonic_ns()
    progress = max(len(stream.sent_ns) for stream in phase.streams)
    seen_at = loop.time()
    while not all(stream.ended.done() for stream in phase.streams):
        await asyncio.sleep(0.25)
        show()
        come = sum(len(stream.sent_ns) for stream in phase.streams)
        if come != progress:
            progress, seen_at = come, loop.time()
        elif loop.time() > seen_at + PATIENCE_S:
            # What hangs shows in the figures as lost.
            return


def request_of(tokens: int) -> bytes:
    content = {"model": "paced", "stream": True, "max_tokens": tokens}
    body = json.dumps({**content, "messages": [{"role": "user", "content": "Say when."}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def kernel_buffers(*ports: int) -> int | None:
    """Bytes that the kernel holds for the sockets of these ports, both ends; None where ``ss`` cannot tell."""
    if shutil.which("ss") is None:
        return None
    either = " or ".join(f"{side} = :{port}" for port in ports for side in ("sport", "dport"))
    told = subprocess.run(["ss", "-tmnH", f"( {either} )"], capture_output=True, text=True, check=False).stdout
    # Received, handed to the network, kept in reserve, to be sent.
    found = [sum(map(int, each)) for each in re.findall(r"skmem:\(r(\d+),.*?,t(\d+),.*?,f(\d+),w(\d+),", told)]
    return sum(found) if found else None


def kernel_pages() -> str:
    """What the kernel says of all TCP sockets of the machine together."""
    try:
        lines = Path("/proc/net/sockstat").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("TCP: ") for line in lines if line.startswith("TCP:")), "")


def report(phases: list[Phase], memory: Memory, tokens: int) -> bool:
    """Print the table and the verdict."""
    direct, beside, through = phases
    shown = Table(title=f"{len(through.streams)} streams of {tokens} tokens: how late a token comes, in ms")
    for name in ("", "streams", "tokens", "lost", "p50", "p90", "p99", "worst"):
        shown.add_column(name, justify="right" if name else "left")
    for phase in phases:
        times = phase.times_ms()
        quantiles = (f"{quantile(times, share):.2f}" for share in (0.5, 0.9, 0.99, 1.0))
        come = sum(len(stream.sent_ns) for stream in phase.streams)
        shown.add_row(phase.name, str(len(phase.streams)), str(come), str(phase.lost(tokens)), *quantiles)
    console.print(shown)
    for line in memory_lines(memory, len(through.streams)):
        console.print(line, highlight=False, soft_wrap=True)
    for fault in sorted({stream.fault for stream in through.streams if stream.fault})[:3]:
        console.print(f"answered instead of a stream: {fault!r}", highlight=False)
    return verdict(direct, beside, through, memory, tokens)


def memory_lines(memory: Memory, streams: int) -> Iterable[str]:
    mib = 1024 * 1024
    yield (
        f"Corral's memory: {memory.idle / mib:.1f} MiB idle, {memory.busy / mib:.1f} MiB with {memory.in_flight:.0f} "
        f"streams open ({memory.tasks:.0f} tasks, {memory.descriptors:.0f} descriptors), "
        f"{memory.after / mib:.1f} MiB after"
    )
    if memory.kernel_bytes is None:
        yield f"the kernel's socket buffers are not in it; ss cannot tell them here (all TCP: {kernel_pages() or '?'})"
    else:
        each = memory.kernel_bytes / max(1, streams) / 1024
        yield f"the kernel's socket buffers are not in it: {each:.1f} KiB for each stream in its four sockets"


def verdict(direct: Phase, beside: Phase, through: Phase, memory: Memory, tokens: int) -> bool:
    added = {share: quantile(through.times_ms(), share) - quantile(direct.times_ms(), share) for share in (0.5, 0.99)}
    beside_p99 = quantile(beside.times_ms(), 0.99)
    each = (memory.busy - memory.idle) / len(through.streams)
    lost = through.lost(tokens)
    at_once = memory.in_flight == len(through.streams)
    holds = lost == 0 and at_once and added[0.99] <= ADDED_P99_LIMIT_MS and each <= MEMORY_LIMIT_BYTES
    console.print(
        f"{'holds' if holds else 'falls short'}: {memory.in_flight:.0f} of {len(through.streams)} streams at once, "
        f"{lost} lost, added per token p50 {added[0.5]:.2f} ms, p99 {added[0.99]:.2f} ms "
        f"(limit {ADDED_P99_LIMIT_MS:g}; direct streams beside them p99 {beside_p99:.2f}), "
        f"{each / 1024:.1f} KiB of memory per stream (limit {MEMORY_LIMIT_BYTES // 1024})",
        highlight=False,
        soft_wrap=True,
    )
    return holds


def quantile(ordered: list[float], share: float) -> float:
    """The value that ``share`` of all are at most; not a number when there is none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    typer.run(main)
