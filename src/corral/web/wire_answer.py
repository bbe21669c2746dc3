"""An exchange over a client's own connection: Inbound and Answer on uvicorn's transport."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from corral.pipeline.answer import Headers
from corral.pipeline.body import ensure_declared, too_large, too_slow

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# So much of a body is taken in before the exchange asks for it.
UNASKED_BYTES = 64 * 1024
# A smaller body goes out in one piece with the head; to copy a larger one costs more than to hand it over apart.
JOINED_BODY_BYTES = 64 * 1024


class WireInbound:
    """A request whose body comes in pieces. Writers: the parser's callbacks, and the exchange that asks for it."""

    __slots__ = ("_asked", "_body", "_fault", "_flow", "_limit_bytes", "_transport", "_waiter", "complete", "headers")

    def __init__(self, headers: Headers, transport: asyncio.Transport, flow: FlowControl, *, expects: bool) -> None:
        """``expects``: the client waits for a word before it sends the body."""
        self.headers = headers
        self._transport = transport
        self._flow = flow
        self._body = bytearray()
        # All of it has come.
        self.complete = False
        # Why no more of it will.
        self._fault: Exception | None = None
        self._asked = not expects
        self._limit_bytes = UNASKED_BYTES
        self._waiter: asyncio.Future[None] | None = None

    async def body(self, limit_bytes: int, limit_s: float) -> bytes:
        """Read the body; raises BodyTooLarge, BodyTimeout, ClientGone, or InvalidRequest when it cannot be read."""
        ensure_declared(self.headers, limit_bytes)
        self._limit_bytes = limit_bytes
        if not self._settled:
            try:
                async with asyncio.timeout(limit_s):
                    await self._until_settled()
            except TimeoutError:
                raise too_slow(limit_s) from None
        if self._fault is not None:
            raise self._fault
        # Nobody needs it here any more.
        body, self._body = self._body, bytearray()
        if len(body) > limit_bytes:
            raise too_large(limit_bytes)
        return bytes(body)

    def feed(self, piece: bytes) -> None:
        """A piece of the body has come."""
        self._body += piece
        if len(self._body) <= self._limit_bytes:
            return
        if self._waiter is None:
            self._flow.pause_reading()
        else:
            self._wake()

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        # Where it came before it was asked for; who reads nothing sees no client leave.
        self._flow.resume_reading()
        self._wake()

    def fail(self, fault: Exception) -> None:
        """No more of it will come; ``body`` raises this."""
        self._fault = fault
        self._wake()

    @property
    def _settled(self) -> bool:
        return self.complete or self._fault is not None or len(self._body) > self._limit_bytes

    async def _until_settled(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        if not self._asked:
            self._asked = True
            self._transport.write(CONTINUE)
        self._flow.resume_reading()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class WireAnswer:
    """Writes the answer to the client's transport. Writers: the exchange, and the connection's ``pause`` and so on.

    The head of a stream waits for its first piece, so that both leave together.
    """

    __slots__ = (
        "_chunked",
        "_default_lines",
        "_head",
        "_keep_alive",
        "_leaving",
        "_pause",
        "_resume",
        "_transport",
        "_waiter",
        "bytes_sent",
        "ended",
        "gone",
        "headers",
        "paused",
        "started",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        default_lines: bytes,
        *,
        chunked: bool,
        keep_alive: Callable[[], bool],
        leaving: Callable[[], object],
    ) -> None:
        """``default_lines``: headers of every answer; ``leaving`` is called when the client leaves before the end."""
        self.headers: Headers = []
        self.started = False
        self.ended = False
        self.gone = False
        self.paused = False
        self.bytes_sent = 0
        self._transport = transport
        self._default_lines = default_lines
        self._chunked = chunked
        self._keep_alive = keep_alive
        self._leaving = leaving
        self._head = b""
        self._pause: Callable[[], None] = _nothing
        self._resume: Callable[[], None] = _nothing
        self._waiter: asyncio.Future[None] | None = None

    def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers of a stream, with what is written first."""
        length: Headers = [(b"transfer-encoding", b"chunked")] if self._chunked else []
        self._head = self._encode(status, headers, length)

    def write(self, piece: bytes) -> None:
        """Send a piece of a started stream."""
        if self.gone or self.ended or not piece:
            return
        self.bytes_sent += len(piece)
        head, self._head = self._head, b""
        if self._chunked:
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(piece), piece))
        else:
            self._transport.write(head + piece)

    def end(self) -> None:
        """The started stream is complete."""
        if not self.ended:
            self.ended = True
            if not self.gone:
                self._transport.write(self._head + b"0\r\n\r\n" if self._chunked else self._head)

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        head = self._encode(status, headers, [(b"content-length", b"%d" % len(body))])
        self.ended = True
        if self.gone:
            return
        self.bytes_sent = len(body)
        if len(body) < JOINED_BODY_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def watch(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call ``pause`` when the client reads too slowly, ``resume`` when it has caught up."""
        self._pause, self._resume = pause, resume
        if self.paused:
            pause()

    async def flush(self) -> None:
        """Wait until the client has taken what was sent, but for what its connection's buffers hold."""
        if self.paused and not self.gone:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._transport.is_closing():
            # It has failed: what was written to it is lost, and the loop will say so in its next turn.
            self.gone = True

    # For the connection.

    def pause(self) -> None:
        """The transport's buffer is full."""
        self.paused = True
        self._pause()

    def resume(self) -> None:
        """The transport's buffer is nearly empty again."""
        self.paused = False
        self._resume()
        self._wake()

    def leave(self) -> None:
        """Nobody is there any more; an exchange that is over already need not know."""
        if self.gone:
            return
        self.gone = True
        if self._waiter is not None:
            self._wake()
        elif not self.ended:
            self._leaving()

    def _encode(self, status: int, headers: Headers, length: Headers) -> bytes:
        """Status line and headers; the values are Corral's own, or have been checked (the request's id)."""
        self.started = True
        lines = [STATUS_LINE[status], self._default_lines]
        lines += [b"%b: %b\r\n" % header for header in (*headers, *self.headers, *length)]
        lines.append(b"\r\n" if self._keep_alive() else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _nothing() -> None:
    pass
