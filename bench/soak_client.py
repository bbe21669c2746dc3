"""One client of a soak: sends what is planned, behaves as planned, and says what came of it."""

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

from soak_plan import Manners, Plan

# Longer than any limit that the soak sets in Corral; what takes longer hangs.
PATIENCE_S = 30.0
# So small that Corral's own buffer fills behind it, and it has to hold its upstream back.
SLOW_BUFFER_BYTES = 16 * 1024
SLOW_S = 0.1
# Longer than Corral's limit on clients that take nothing, which the soak sets to two seconds.
STUCK_S = 2.5
# How long one that leaves while it waits does so.
SOON_S = 0.05


@dataclass(slots=True)
class Answer:
    """What came. Written by the connection's callbacks."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    # All of it has come, as its framing says.
    complete: bool = False
    # The connection is over, for whatever reason.
    closed: bool = False
    # The client has left of its own.
    left: bool = False
    # Nothing came for too long.
    hung: bool = False
    # For whoever has to find out why: which request of its connection it was, how long it took, how it ended.
    nth: int = 0
    seconds: float = 0.0
    ending: str = ""


class Client(asyncio.Protocol):
    """A connection: one request after another, as long as both sides keep it. Written by its own callbacks.

    A worker calls ``ask`` and waits for the answer.
    """

    def __init__(self) -> None:
        self.open = True
        # More has come than was asked for.
        self.astray = False
        self._answer = Answer()
        self._plan: Plan | None = None
        self._over = asyncio.Event()
        self._parser: Any = None
        self._pauses = 0
        self._requests = 0

    @classmethod
    async def connect(cls, port: int, *, slow: bool) -> "Client":
        """A new connection; a slow one has room for little."""
        loop = asyncio.get_running_loop()
        own = socket.socket()
        own.setblocking(False)
        if slow:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        try:
            await loop.sock_connect(own, ("127.0.0.1", port))
            _, client = await loop.create_connection(cls, sock=own)
        except BaseException:
            own.close()
            raise
        return client

    async def ask(self, plan: Plan) -> Answer:
        """Send one request and behave as planned; what came, at the latest after PATIENCE_S."""
        self._requests += 1
        self._plan, self._answer = plan, Answer(nth=self._requests)
        self._over.clear()
        self._pauses = 3
        self._parser = httptools.HttpResponseParser(self)
        answer = self._answer
        if not self.open:
            answer.closed = True
            return answer
        asked_at = time.monotonic()
        self._send(plan)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._over.wait()
        except TimeoutError:
            answer.hung = True
            self.leave()
        answer.seconds = time.monotonic() - asked_at
        return answer

    def leave(self) -> None:
        """Close at once; what was not read makes it a reset."""
        self.open = False
        self._answer.left = True
        self._transport.abort()
        self._over.set()

    def _send(self, plan: Plan) -> None:
        request = plan.request
        head = request.index(b"\r\n\r\n") + 4
        match plan.manners:
            case Manners.LEAVES_IN_HEAD:
                self._transport.write(request[: int(plan.moment * head)])
                asyncio.get_running_loop().call_soon(self.leave)
            case Manners.LEAVES_IN_BODY:
                self._transport.write(request[: head + int(plan.moment * (len(request) - head))])
                asyncio.get_running_loop().call_later(SOON_S * plan.moment, self._leave_if, plan)
            case Manners.LEAVES_SOON:
                self._transport.write(request)
                asyncio.get_running_loop().call_later(SOON_S * plan.moment, self._leave_if, plan)
            case Manners.HALF_CLOSES:
                self._transport.write(request)
                self._transport.write_eof()
            case _:
                self._transport.write(request)

    def _leave_if(self, plan: Plan) -> None:
        """Leave, unless the answer has come already."""
        if self._plan is plan and not self._over.is_set():
            self.leave()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._plan is None or self._over.is_set():
            self.astray = True
            self.open = False
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._answer.status = -1
            self._transport.abort()
            return
        if not self._over.is_set():
            self._mind_manners(self._plan)

    def eof_received(self) -> None:
        # Within an answer this is wrong; between two Corral may do it, and the next request is for another connection.
        self.open = False
        self._answer.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._answer.ending = repr(exc)
        self._answer.closed = True
        self._over.set()

    def _mind_manners(self, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        match plan.manners:
            case Manners.LEAVES_AT_FIRST_BYTE:
                self.leave()
            case Manners.LEAVES_WITHIN if len(self._answer.body) > plan.moment * 4000:
                self.leave()
            case Manners.SLOW | Manners.STUCK if self._pauses:
                stuck = plan.manners is Manners.STUCK
                self._pauses -= 3 if stuck else 1
                self._transport.pause_reading()
                loop.call_later(STUCK_S if stuck else SLOW_S * plan.moment, self._transport.resume_reading)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._answer.body += body

    def on_message_complete(self) -> None:
        self._answer.complete = True
        if not self._parser.should_keep_alive():
            self.open = False
            self._transport.close()
        self._over.set()


def may_reuse(client: Client | None, plan: Plan) -> bool:
    """The connection of the last request will do for this one."""
    return client is not None and client.open and plan.manners is Manners.PATIENT and not plan.new_connection
