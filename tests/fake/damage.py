"""What each fault does to a stream of events, and to the bytes that leave."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from fake.connection import LAST_CHUNK, Connection, chunk
from fake.events import Event, Sort, data
from fake.faults import BREAKS, Fault
from fake.shapes import error


@dataclass(frozen=True)
class Comment:
    text: bytes = b":\n\n"
    joined: bool = False


class Broken(Exception):
    """The reply ends here, in the way of a fault in ``BREAKS``."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


Events = AsyncIterator[Event | Comment]
Bytes = AsyncIterator[bytes]


# -- on events ----------------------------------------------------------------


async def stall(events: Events, fault: Fault, connection: Connection) -> Events:
    sent = 0
    async for event in events:
        if sent == fault.after:
            await connection.pause(fault.seconds)
        sent += 1
        # What comes before the silence leaves before it.
        yield replace(event, joined=event.joined and sent != fault.after)


async def break_off(events: Events, fault: Fault, connection: Connection) -> Events:
    sent = 0
    async for event in events:
        if sent == fault.after:
            raise Broken(fault.kind)
        yield event
        sent += 1


async def malformed(events: Events, fault: Fault, connection: Connection) -> Events:
    sent = 0
    async for event in events:
        if sent == fault.after:
            yield Event(Sort.FAULT, b'data: {"choices":[{"finish_reason":nul\n\n')
        yield event
        sent += 1


async def error_event(events: Events, fault: Fault, connection: Connection) -> Events:
    sent = 0
    async for event in events:
        if sent == fault.after:
            yield Event(Sort.FAULT, data(error(500, "server_error", "Context size has been exceeded.")))
            return
        yield event
        sent += 1


async def huge(events: Events, fault: Fault, connection: Connection) -> Events:
    """A delta of that size comes before the first delta that follows ``after`` events."""
    sent, to_come = 0, True
    async for event in events:
        if to_come and sent >= fault.after and isinstance(event, Event) and event.sort is Sort.DELTA:
            yield Event(Sort.DELTA, inflate(event.text, fault.size))
            to_come = False
        yield event
        sent += 1


def inflate(text: bytes, size: int) -> bytes:
    """The event with its text replaced by one of ``size`` bytes."""
    event = json.loads(text.removeprefix(b"data: "))
    choice = event["choices"][0]
    if "delta" in choice:
        choice["delta"] = {"content": "x" * size}
    else:
        choice["text"] = "x" * size
    return data(event)


async def no_usage(events: Events, fault: Fault, connection: Connection) -> Events:
    async for event in events:
        if isinstance(event, Event) and event.sort is Sort.FINISH:
            value = json.loads(event.text.removeprefix(b"data: "))
            value.pop("usage", None)
            yield replace(event, text=data(value), joined=False)
        elif not (isinstance(event, Event) and event.sort is Sort.USAGE):
            yield event


async def no_done(events: Events, fault: Fault, connection: Connection) -> Events:
    async for event in events:
        if not (isinstance(event, Event) and event.sort is Sort.DONE):
            yield event


async def double_finish(events: Events, fault: Fault, connection: Connection) -> Events:
    async for event in events:
        yield event
        if isinstance(event, Event) and event.sort is Sort.FINISH:
            yield event


async def pings(events: Events, fault: Fault, connection: Connection) -> Events:
    async for event in events:
        yield Comment()
        yield event


async def crlf(events: Events, fault: Fault, connection: Connection) -> Events:
    async for event in events:
        yield replace(event, text=event.text.replace(b"\n", b"\r\n"))


# In the order in which they are applied: what counts events comes before what adds some.
ON_EVENTS: dict[str, Callable[[Events, Fault, Connection], Events]] = {
    "stall": stall,
    **dict.fromkeys(BREAKS, break_off),
    "error_event": error_event,
    "malformed": malformed,
    "huge": huge,
    "no_usage": no_usage,
    "no_done": no_done,
    "double_finish": double_finish,
    "pings": pings,
    "crlf": crlf,
}


async def framed(head: bytes, events: Events) -> Bytes:
    """The bytes of a stream: the headers, an HTTP chunk for each event or joined events, the last chunk."""
    yield head
    pending = b""
    try:
        async for event in events:
            pending += event.text
            if not event.joined:
                yield chunk(pending)
                pending = b""
    except Broken:
        if pending:
            yield chunk(pending)
        raise
    yield LAST_CHUNK


# -- on bytes -----------------------------------------------------------------


async def trickle(parts: Bytes, fault: Fault, connection: Connection) -> Bytes:
    async for part in parts:
        for start in range(0, len(part), fault.size):
            yield part[start : start + fault.size]
            await connection.pause(fault.seconds or 0)


async def split(parts: Bytes, fault: Fault, connection: Connection) -> Bytes:
    async for part in parts:
        half = len(part) // 2
        yield part[:half]
        await connection.pause(fault.seconds or 0)
        yield part[half:]


async def one_segment(parts: Bytes, fault: Fault, connection: Connection) -> Bytes:
    kept = b""
    try:
        async for part in parts:
            kept += part
    except Broken:
        yield kept
        raise
    yield kept


ON_BYTES: dict[str, Callable[[Bytes, Fault, Connection], Bytes]] = {
    "one_segment": one_segment,
    "split": split,
    "trickle": trickle,
}
