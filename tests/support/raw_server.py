"""A server that sends what its script says, byte by byte: HTTP or not."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from corral.upstream.address import Address

# How long a script may go on after the test has done its part.
LIMIT_S = 10


class Peer:
    """One accepted connection, as its script sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read one request, with its body."""
        head = await self.head()
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return head + await self.reader.readexactly(length)

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def dribble(self, data: bytes) -> None:
        """Send byte by byte, a turn of the loop for each."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(0)

    def fin(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with an RST."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has closed the connection; what it still sends is dropped."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Peer], Awaitable[None]]


class RawServer:
    """Plays its scripts, one for each connection in turn. A connection too many fails the test."""

    def __init__(self, scripts: tuple[Script, ...], group: asyncio.TaskGroup) -> None:
        self.connections = 0
        self.address = Address("127.0.0.1", 0)
        self._scripts = scripts
        self._group = group

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._group.create_task(self._play(self.connections - 1, Peer(reader, writer)))

    async def _play(self, number: int, peer: Peer) -> None:
        try:
            assert number < len(self._scripts), "a connection too many"
            await self._scripts[number](peer)
        except ConnectionError:
            # The client has left, which ends the script; whether it should have is the test's to say.
            pass
        finally:
            peer.writer.close()


@asynccontextmanager
async def serving(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve on a free port; on leaving, every script must come to its end by itself."""
    async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
        raw = RawServer(scripts, group)
        server = await asyncio.start_server(raw.accept, "127.0.0.1", 0, ssl=tls)
        raw.address = Address("127.0.0.1", server.sockets[0].getsockname()[1], tls=tls is not None)
        try:
            yield raw
        finally:
            server.close()
        limit.reschedule(asyncio.get_running_loop().time() + LIMIT_S)
