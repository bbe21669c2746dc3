"""A reply of an upstream, from its first byte to its last."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from corral.core.errors import BadReply, ConnectionLost, UpstreamTimeout
from corral.upstream.message import Message

if TYPE_CHECKING:
    from corral.upstream.connection import Connection

# Takes in what came; False says that it does not show the upstream at work, and the limit on silence runs on.
Feed = Callable[[bytes], bool | None]
# Takes in an HTTP chunk, framed as it came; False says that it is not understood, and is to be fed as any other piece.
FeedChunk = Callable[[bytes], bool]


class Reply:
    """Status and headers, and the body as it comes. Writers: its connection's callbacks and its one reader.

    Whoever has it closes it (``with reply:``). ``read`` and ``splice`` are for
    one caller, once; when they are cancelled the connection is closed at once.
    """

    __slots__ = (
        "_aligned",
        "_connection",
        "_failure",
        "_feed",
        "_feed_chunk",
        "_finished",
        "_flowing",
        "_limit_s",
        "_message",
        "_paused",
        "_phase",
        "_waiter",
    )

    def __init__(self, connection: "Connection", head_s: float, *, bodiless: bool = False) -> None:
        self._connection = connection
        self._message = Message(bodiless=bodiless)
        self._limit_s = head_s
        self._phase = "first_byte"
        self._feed: Feed | None = None
        self._feed_chunk: FeedChunk | None = None
        # The last piece was one whole chunk: the next one may be handed over unparsed.
        self._aligned = False
        self._waiter: asyncio.Future[None] | None = None
        # Why there is no more to come; what feed raised may be any exception.
        self._failure: Exception | None = None
        self._finished = False
        self._paused = False
        self._flowing = True

    @property
    def status(self) -> int:
        return self._message.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """In the order they came, names in lower case."""
        return self._message.headers

    @property
    def complete(self) -> bool:
        """The whole body came."""
        return self._message.complete

    def header(self, name: bytes) -> bytes | None:
        """The first of this (lower-case) name."""
        for key, value in self._message.headers:
            if key == name:
                return value
        return None

    def limit(self, idle_s: float, phase: str) -> None:
        """Bear no silence longer than this from now on; ``phase`` is the name of the limit in UpstreamTimeout.

        Until it is called, the limit for the head goes on as a limit on silence.
        """
        self._limit_s = idle_s
        self._phase = phase
        if not self._settled:
            self._connection.alarm.set(idle_s)

    async def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises BadReply when it is longer than ``max_bytes``, else as ``splice`` does."""
        message = self._message
        if message.complete and self._failure is None and message.body_bytes <= max_bytes:
            # It came together with the head, as most do.
            return message.take()
        body = bytearray()

        def collect(piece: bytes) -> None:
            if len(body) + len(piece) > max_bytes:
                raise BadReply(f"the model server's reply is longer than {max_bytes} bytes")
            body.extend(piece)

        await self.splice(collect)
        return bytes(body)

    async def splice(self, feed: Feed, feed_chunk: FeedChunk | None = None) -> None:
        """Hand the body to ``feed`` as it comes; returns when it is complete, or when ``finish`` is called.

        ``feed`` runs inside the socket's callback, once for all that came
        together: no task wakes for it. ``feed_chunk`` is asked first, where a
        chunk is likely to have come by itself. Raises ConnectionLost,
        UpstreamTimeout, BadReply, and what these two raise.
        """
        self._feed = feed
        self._feed_chunk = feed_chunk
        try:
            if self._message.pieces and not self._finished:
                feed(self._message.take())
            if not self._settled:
                self._steer()
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        except BaseException:
            self._connection.abort()
            raise
        finally:
            self._feed = self._feed_chunk = None
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Nothing more is wanted: ``splice`` returns, and a reply that is not complete closes its connection."""
        if not self._settled:
            self._finished = True
            self._break_off()

    def pause(self) -> None:
        """Take nothing more for now: the kernel's buffers fill and the upstream stops. The limit on silence rests."""
        self._paused = True
        self._steer()

    def resume(self) -> None:
        self._paused = False
        self._steer()

    def close(self) -> None:
        """Give the connection back if the reply is complete and allows it, else close it. Idempotent, does not wait."""
        if self._connection.reply is not self:
            return
        if not self._settled:
            self.fail(ConnectionLost("the exchange with the model server was given up"))
        elif self._message.keep_alive and self._failure is None and self._flowing:
            self._message.stop()
            self._connection.release(self.header(b"keep-alive"))
        else:
            self._break_off()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For the connection.

    async def until_head(self) -> None:
        """Wait for status and headers; closes the connection when they do not come."""
        try:
            if self._failure is None:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        except BaseException:
            self._connection.abort()
            raise
        if not self._message.head_complete and self._failure is not None:
            raise self._failure

    def receive(self, data: bytes) -> None:
        try:
            if self._aligned and self._feed_chunk is not None and self._feed_chunk(data):
                self._connection.alarm.set(self._limit_s)
            else:
                self._parse(data)
        except Exception as error:  # noqa: BLE001 - raised again where splice waits
            self.fail(error)

    def _parse(self, data: bytes) -> None:
        message = self._message
        message.feed(data)
        self._aligned = message.is_chunk(data)
        feed = self._feed
        if feed is None:
            self._receive_unread()
        elif message.pieces and not self._finished and feed(message.take()) is not False:
            self._connection.alarm.set(self._limit_s)
        if message.complete:
            self._wake()
        if message.fault is not None:
            self.fail(message.fault)

    def end(self) -> None:
        """The upstream will send no more."""
        if self._message.end():
            self._wake()
        else:
            self.lost()

    def lost(self, cause: Exception | None = None) -> None:
        """The connection is gone."""
        if self._settled:
            return
        reused = self._connection.reused and not self._message.begun
        error = ConnectionLost("the model server closed the connection before its reply was complete", reused=reused)
        error.__cause__ = cause
        self.fail(error)

    def silent(self) -> None:
        """The limit on silence has passed."""
        if not self._flowing:
            self._connection.alarm.set(self._limit_s)
        elif not self._settled:
            self.fail(UpstreamTimeout(self._phase, self._limit_s))

    def fail(self, error: Exception) -> None:
        """End it with this error, unless another came first."""
        if self._failure is None and not self._finished:
            self._failure = error
            self._break_off()

    @property
    def _settled(self) -> bool:
        return self._message.complete or self._finished or self._failure is not None

    def _break_off(self) -> None:
        self._aligned = False
        self._message.stop()
        self._connection.abort()
        self._wake()

    def _receive_unread(self) -> None:
        """Nobody has asked for the body yet: when the head is there, the rest waits in the kernel."""
        # Not before: head_s bounds the whole head, not each byte of it.
        if self._message.head_complete:
            self._connection.alarm.set(self._limit_s)
            self._steer()
            self._wake()

    def _steer(self) -> None:
        unwanted = self._feed is None and bool(self._message.pieces)
        flowing = self._message.complete or not (self._paused or unwanted)
        if flowing is not self._flowing:
            self._flowing = flowing
            self._connection.flow(on=flowing)
            self._connection.alarm.set(self._limit_s)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
