"""Exchanges between our HTTP client and a scripted server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from corral.upstream.wire import Client, Reply
from support.raw_server import Peer, RawServer, Script

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
# More than the buffers of two sockets hold, so a peer that may not send it notices.
MUCH = 32_000_000
# Long enough for anything that is to succeed, short enough for what is to fail.
LONG_S = 20.0
SHORT_S = 0.05


@asynccontextmanager
async def opened(*, idle_expiry_s: float = LONG_S, max_uses: int = 90, max_idle: int = 64) -> AsyncIterator[Client]:
    client = Client(idle_expiry_s=idle_expiry_s, max_uses=max_uses, max_idle=max_idle)
    try:
        yield client
    finally:
        await client.close()


async def send(client: Client, server: RawServer, body: bytes = b"{}", *, head_s: float = LONG_S) -> Reply:
    return await client.send(server.address, "POST", "/v1/x", body=body, connect_s=LONG_S, head_s=head_s)


async def ask(client: Client, server: RawServer) -> bytes:
    """One whole exchange; the body of its reply."""
    with await send(client, server) as reply:
        return await reply.read(1000)


def answering(*replies: bytes) -> Script:
    """Answer this many requests on one connection, then wait for the client to leave."""

    async def script(peer: Peer) -> None:
        for reply in replies:
            await peer.request()
            await peer.send(reply)
        await peer.gone()

    return script


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def ending(data: bytes, how: str) -> Script:
    """Answer with ``data``; then close, reset, or stay and say nothing."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        await leave(peer, how)

    return script


async def leave(peer: Peer, how: str) -> None:
    if how == "fin":
        peer.fin()
    elif how == "reset":
        peer.reset()
    else:
        await peer.gone()


def stepping(*pieces: bytes, on: asyncio.Event) -> Script:
    """Answer with the pieces, each when ``on`` is set, which it clears; then wait for the client to leave."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await on.wait()
            on.clear()
            await peer.send(piece)
        await peer.gone()

    return script


async def murmur(peer: Peer, piece: bytes) -> None:
    """Send the same piece again and again, until the client leaves."""
    gone = asyncio.ensure_future(peer.gone())
    while not gone.done():
        with suppress(ConnectionError):
            await peer.send(piece)
        await asyncio.wait([gone], timeout=SHORT_S / 10)
