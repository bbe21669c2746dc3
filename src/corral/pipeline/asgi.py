"""An exchange under any ASGI server: Inbound and Answer over ``receive`` and ``send``."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

from corral.pipeline.answer import ClientGone, Headers
from corral.pipeline.body import ensure_declared, too_large, too_slow

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Above the high mark the upstream is paused, below the low one it goes on:
# enough for some hundred events, little enough for thousands of streams.
HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024


class AsgiInbound:
    """A request under ASGI; ``when_read`` is called as soon as its body is complete."""

    def __init__(self, headers: Headers, receive: Receive, when_read: Callable[[], None]) -> None:
        self.headers = headers
        self._receive = receive
        self._when_read = when_read

    async def body(self, limit_bytes: int, limit_s: float) -> bytes:
        """Read the body; raises BodyTooLarge, BodyTimeout or ClientGone."""
        ensure_declared(self.headers, limit_bytes)
        try:
            async with asyncio.timeout(limit_s):
                return await self._read(limit_bytes)
        except TimeoutError:
            raise too_slow(limit_s) from None

    async def _read(self, limit_bytes: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit_bytes:
                raise too_large(limit_bytes)
            if not message.get("more_body", False):
                self._when_read()
                return b"".join(pieces)


class AsgiAnswer:
    """Hands the answer to ASGI's ``send``; used as ``async with``, which ends when all is sent.

    One writer: the exchange, through the methods of Answer. A stream has a
    sender task, so that ``write`` need not wait; and as ASGI tells of a departed
    client only to who calls ``receive``, a watcher task does, and then calls
    ``on_gone``.
    """

    def __init__(self, receive: Receive, send: Send, *, stall_s: float) -> None:
        self.headers: Headers = []
        self.started = False
        self.ended = False
        self.gone = False
        self.bytes_sent = 0
        self._receive = receive
        self._send = send
        self._stall_s = stall_s
        self._on_gone: Callable[[], object] = _nothing
        self._messages: list[Message] = []
        self._unsent_bytes = 0
        self._paused = False
        self._all_sent = False
        self._wake = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._pause: Callable[[], None] = _nothing
        self._resume: Callable[[], None] = _nothing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._watcher is not None:
                self._watcher.cancel()
            await self.flush()
            if self._sender is not None and self.ended:
                self._sender.result()
        finally:
            await _over(self._sender)
            await _over(self._watcher)

    def on_gone(self, gone: Callable[[], object]) -> None:
        """Watch the client, whose request has been read, and call ``gone`` when it leaves or stops reading."""
        self._on_gone = gone
        self._watcher = asyncio.create_task(self._watch_client(), name="corral-client-watch")

    def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers of a stream."""
        self._begin(status, headers)
        self._sender = asyncio.create_task(self._send_stream(), name="corral-client-send")

    def write(self, piece: bytes) -> None:
        """Send a piece of a started stream."""
        if self.gone or self.ended:
            return
        self.bytes_sent += len(piece)
        self._unsent_bytes += len(piece)
        self._queue({"type": "http.response.body", "body": piece, "more_body": True})
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._pause()

    def end(self) -> None:
        """The started stream is complete."""
        if not self.ended:
            self.ended = True
            self._queue({"type": "http.response.body", "body": b"", "more_body": False})

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer; it leaves with the end of the ``async with`` block."""
        self._begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.ended = True
        self.bytes_sent = len(body)
        # A server takes a piece of any size and returns; whether the client takes it, only the next one shows.
        starts = range(0, max(1, len(body)), HIGH_WATER_BYTES)
        for start in starts:
            piece = body[start : start + HIGH_WATER_BYTES]
            self._queue({"type": "http.response.body", "body": piece, "more_body": start != starts[-1]})

    def watch(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call ``pause`` when the client reads too slowly, ``resume`` when it has caught up."""
        self._pause, self._resume = pause, resume
        if self._paused:
            pause()

    async def flush(self) -> None:
        """Wait until the server has taken what was sent; ``gone`` says if the client did not let it."""
        if self._sender is None:
            await self._send_queued()
        elif self.ended:
            await asyncio.wait([self._sender])

    def _begin(self, status: int, headers: Headers) -> None:
        self.started = True
        self._queue({"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]})

    def _queue(self, message: Message) -> None:
        self._messages.append(message)
        self._wake.set()

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        """Nobody is there any more; an exchange that is over already need not know."""
        # A server says "disconnect" to who asks after the end, too.
        if self.gone or self._all_sent:
            return
        self.gone = True
        self._wake.set()
        if not self.ended:
            self._on_gone()

    async def _send_stream(self) -> None:
        try:
            while not (self.gone or (self.ended and not self._messages)):
                await self._wake.wait()
                self._wake.clear()
                await self._send_queued()
        except Exception:
            # A server that fails will send no more: what is written now must not pile up.
            self._leave()
            raise

    async def _send_queued(self) -> None:
        while self._messages and not self.gone:
            messages, self._messages = self._messages, []
            for message in _joined(messages):
                await self._send_in_time(message)
                self._unsent_bytes -= len(message.get("body", b""))
            if self._paused and self._unsent_bytes < LOW_WATER_BYTES:
                self._paused = False
                self._resume()

    async def _send_in_time(self, message: Message) -> None:
        """Send one message; a client that takes nothing for too long counts as gone."""
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(message)
            self._all_sent = message.get("more_body") is False
        except OSError:
            # TimeoutError is one, and so does a server tell of a client that has left (ASGI 2.4).
            self._leave()


def _joined(messages: list[Message]) -> list[Message]:
    """The same messages with neighbouring pieces of body in one: one write for a batch of events."""
    if len(messages) < 3 or messages[0]["type"] != "http.response.body" or not messages[-1]["more_body"]:
        return messages
    return [{**messages[0], "body": b"".join(message["body"] for message in messages)}]


async def _over(task: asyncio.Task[None] | None) -> None:
    """End a task of ours and wait until it has ended."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait([task])


def _nothing() -> None:
    pass
