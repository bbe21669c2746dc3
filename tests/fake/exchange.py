"""One request and its reply, with the faults that strike it."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable

from fake.connection import LAST_CHUNK, ClientGone, Connection, Request, head
from fake.damage import ON_BYTES, ON_EVENTS, Broken, Bytes, Events, framed
from fake.faults import BREAKS, INSTEAD, Fault
from fake.record import Record
from fake.shapes import LOADING, dump, error

JSON = "application/json; charset=utf-8"
BODIES = {
    "text": ("text/plain", b"something went wrong"),
    "html": ("text/html", b"<html><body><h1>Bad Gateway</h1></body></html>"),
    "empty": (JSON, b""),
}


class Exchange:
    """Writes the reply to one request; ``keep`` tells whether the connection may serve another."""

    def __init__(self, connection: Connection, request: Request, record: Record, faults: list[Fault]) -> None:
        self.connection = connection
        self.request = request
        self.record = record
        self.faults = faults
        self.keep = request.keep_alive

    async def answer_with_fault(self) -> bool:
        """Do what a fault has in place of a reply, if there is such a fault."""
        for fault in self.faults:
            if fault.kind in INSTEAD:
                self.record.ended = "fault"
                await ANSWERS[fault.kind](self, fault)
                self.keep = self.keep and fault.kind in ("status", "loading", "silence")
                if fault.kind != "silence":
                    return True
                self.record.ended = "running"
        return False

    async def whole(self, status: int, body: bytes, content_type: str = JSON, **headers: str) -> None:
        """A reply in one piece. After an error llama-server closes the connection."""
        self.keep = self.keep and status < 400
        self.record.status = status
        reply = self._head(status, content_type, headers, len(body)) + body
        broken = next((fault.kind for fault in self.faults if fault.kind in BREAKS), None)
        await self._send(self._damaged(_half(reply, len(body), broken)), until_gone=False)

    async def stream(self, events: Events) -> None:
        """A chunked reply; llama-server closes the connection after it, whatever its headers say."""
        head_bytes = self.stream_head()
        self.keep = False
        self.record.status = 200
        for name, spoil in ON_EVENTS.items():
            for fault in (fault for fault in self.faults if fault.kind == name):
                events = spoil(events, fault, self.connection)
        await self._send(self._damaged(framed(head_bytes, events)), until_gone=True)

    def stream_head(self) -> bytes:
        headers = [
            ("X-Accel-Buffering", "no"),
            ("Content-Type", self._type("text/event-stream")),
            ("Transfer-Encoding", "chunked"),
            self._kept(),
        ]
        return head(200, headers)

    def expected_head(self) -> bytes:
        """The head that a sound reply to this request would have."""
        fields = self.record.body
        streamed = isinstance(fields, dict) and fields.get("stream") is True
        return self.stream_head() if streamed else self._head(200, JSON, {}, 100)

    def _head(self, status: int, content_type: str, headers: dict[str, str], length: int) -> bytes:
        more = [(name.replace("_", "-"), value) for name, value in headers.items()]
        content = [("Content-Type", self._type(content_type)), ("Content-Length", str(length))]
        return head(status, [*more, *content, self._kept()])

    def _kept(self) -> tuple[str, str]:
        """What is said of the connection: after a stream it is not true, in llama-server either."""
        return ("Keep-Alive", "timeout=5, max=100") if self.keep else ("Connection", "close")

    def _type(self, content_type: str) -> str:
        return next((fault.type for fault in self.faults if fault.kind == "wrong_type"), content_type)

    def _damaged(self, parts: Bytes) -> Bytes:
        for name, spoil in ON_BYTES.items():
            for fault in (fault for fault in self.faults if fault.kind == name):
                parts = spoil(parts, fault, self.connection)
        return parts

    async def _send(self, parts: Bytes, *, until_gone: bool) -> None:
        try:
            async for part in parts:
                # llama-server looks before each chunk of a stream, and never while a whole reply is made.
                if until_gone and self.connection.gone.is_set():
                    raise ClientGone
                await self.connection.write(part)
                self.record.writes += 1
        except Broken as broken:
            self.keep = False
            self.record.ended = "fault"
            await break_off(self.connection, broken.kind)


async def break_off(connection: Connection, kind: str) -> None:
    """End a reply in one of the ways of ``BREAKS``."""
    if kind == "die":
        os._exit(9)
    elif kind == "rst":
        connection.reset()
    elif kind == "truncate":
        await connection.write(LAST_CHUNK)
    # What remains, ``fin``, is what the end of a connection does anyway.


async def _half(reply: bytes, body_size: int, broken: str | None) -> AsyncIterator[bytes]:
    if broken is None:
        yield reply
        return
    yield reply[: len(reply) - body_size // 2]
    # Content-Length promises more: here the end of the connection is the only end there is.
    raise Broken("fin" if broken == "truncate" else broken)


# -- in place of a reply --------------------------------------------------------


async def silence(exchange: Exchange, fault: Fault) -> None:
    await exchange.connection.pause(fault.seconds)


async def head_then_silence(exchange: Exchange, fault: Fault) -> None:
    await exchange.connection.write(exchange.expected_head())
    await exchange.connection.pause(fault.seconds)


async def loading(exchange: Exchange, fault: Fault) -> None:
    await exchange.whole(503, dump(LOADING))


async def status(exchange: Exchange, fault: Fault) -> None:
    body_of_status = dump(error(fault.status, "server_error", "something went wrong"))
    content_type, body = BODIES.get(fault.body, (JSON, body_of_status))
    headers = {"Retry_After": fault.retry_after} if fault.retry_after else {}
    await exchange.whole(fault.status, body, content_type, **headers)


async def head_cut(exchange: Exchange, fault: Fault) -> None:
    whole = exchange.expected_head()
    await exchange.connection.write(whole[: whole.index(b"Content-Type") + 4])


async def garbage(exchange: Exchange, fault: Fault) -> None:
    await exchange.connection.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")


async def close(exchange: Exchange, fault: Fault) -> None:
    exchange.connection.close()


async def reset(exchange: Exchange, fault: Fault) -> None:
    exchange.connection.reset()


ANSWERS: dict[str, Callable[[Exchange, Fault], Awaitable[None]]] = {
    "silence": silence,
    "head_then_silence": head_then_silence,
    "loading": loading,
    "status": status,
    "head_cut": head_cut,
    "garbage": garbage,
    "close": close,
    "reset": reset,
    "reset_on_reuse": reset,
}
