"""One HTTP/1.1 connection: reads requests, writes bytes, and breaks off in every way a socket can."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast


class ClientGone(Exception):
    """The client closed its side before the reply was through."""


@dataclass(frozen=True)
class Request:
    """``nth`` counts this connection's requests from 1; header names are lower case, the last of equal ones wins."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    nth: int
    keep_alive: bool


class Connection(asyncio.Protocol):
    """Written by its own callbacks; the task that ``serve`` runs in reads requests and writes replies."""

    def __init__(self, serve: "Callable[[Connection], Coroutine[None, None, None]]", number: int) -> None:
        self._serve = serve
        self.number = number
        self.gone = asyncio.Event()
        # When the client was seen to close or reset, on this process's monotonic clock.
        self.left_at: float | None = None
        # When the first of the two sides closed.
        self.closed_at: float | None = None
        self._closed_by_us = False
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._requests = 0

    # -- what asyncio calls -------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writable.set()
        self.task = asyncio.get_running_loop().create_task(self._serve(self))

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._arrived.set()

    def eof_received(self) -> bool:
        self._note_departure()
        # llama-server still answers a request that came whole before the client shut its side.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._note_departure()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- what the server calls ----------------------------------------------

    async def read_request(self, idle_s: float) -> Request | None:
        """The next request, or ``None`` when the client leaves or stays idle."""
        try:
            async with asyncio.timeout(idle_s):
                head = await self._take_until(b"\r\n\r\n")
            request_line, *lines = head.decode("latin-1").split("\r\n")
            method, target, version = request_line.split(" ")
            headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
            body = await self._take(int(headers.get("content-length", "0")))
        except (TimeoutError, ClientGone, ValueError):
            return None
        self._requests += 1
        path, _, query = target.partition("?")
        asked = headers.get("connection", "").lower()
        keep_alive = asked != "close" and (version == "HTTP/1.1" or asked == "keep-alive")
        return Request(method, path, query, headers, body, self._requests, keep_alive)

    async def write(self, data: bytes) -> None:
        """Send, and wait while the client does not read; raises ``ClientGone``."""
        self._ensure_open()
        self._transport.write(data)
        await self._writable.wait()
        self._ensure_open()

    async def pause(self, seconds: float | None) -> None:
        """Say nothing for so long (``None``: for ever); raises ``ClientGone`` as soon as the client leaves."""
        try:
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        except TimeoutError:
            return
        raise ClientGone

    def close(self) -> None:
        """Send what is left, then FIN."""
        self._note_end()
        self._closed_by_us = True
        self._transport.close()

    def reset(self) -> None:
        """RST: the client gets ``ECONNRESET``, unless it has left already."""
        if self._transport.is_closing():
            return
        self._note_end()
        self._closed_by_us = True
        self._own_socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # -- private ------------------------------------------------------------

    def _own_socket(self) -> socket.socket:
        return cast(socket.socket, self._transport.get_extra_info("socket"))

    def _ensure_open(self) -> None:
        if self._transport.is_closing():
            # A write that fails closes the transport before ``connection_lost`` is called.
            self._note_departure()
            raise ClientGone

    def _note_end(self) -> None:
        if self.closed_at is None:
            self.closed_at = time.monotonic()

    def _note_departure(self) -> None:
        self._note_end()
        if not self._closed_by_us and self.left_at is None:
            self.left_at = time.monotonic()
        self.gone.set()
        self._arrived.set()

    async def _take_until(self, mark: bytes) -> bytes:
        while (end := self._received.find(mark)) < 0:
            await self._more()
        return (await self._take(end + len(mark)))[:end]

    async def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            await self._more()
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    async def _more(self) -> None:
        if self.gone.is_set():
            raise ClientGone
        self._arrived.clear()
        await self._arrived.wait()


def head(status: int, headers: list[tuple[str, str]]) -> bytes:
    """A response's status line and headers, in llama-server's spelling."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Server: llama.cpp", "Access-Control-Allow-Origin: "]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
