"""Idle connections: which are kept, when they go, and what a request does that meets a closing one."""

import asyncio

import pytest

from corral.core.errors import ConnectionLost, UpstreamTimeout
from corral.upstream.wire import Client
from support.exchanges import HELLO, LONG_S, OK, SHORT_S, answering, ask, opened, send
from support.loops import on_both_loops
from support.raw_server import Peer, serving


@on_both_loops
async def test_a_whole_reply_leaves_its_connection_for_the_next() -> None:
    async with serving(answering(HELLO, HELLO, HELLO)) as server, opened() as client:
        for _ in range(3):
            assert await ask(client, server) == b"hello"
        assert server.connections == 1


@on_both_loops
async def test_the_connection_used_last_is_used_next() -> None:
    async with serving(answering(HELLO), answering(HELLO, HELLO)) as server, opened() as client:
        first, second = await send(client, server), await send(client, server)
        for reply in (first, second):
            await reply.read(5)
            reply.close()
        assert await ask(client, server) == b"hello"


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"keep-alive: timeout=5, max=0\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"keep-alive: timeout=0\r\ncontent-length: 5\r\n\r\nhello",
        HELLO + b"and more",
    ],
)
@on_both_loops
async def test_a_reply_that_rules_it_out_leaves_no_connection(reply: bytes) -> None:
    async with serving(answering(reply), answering(reply)) as server, opened() as client:
        assert await ask(client, server) == b"hello"
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_a_peer_that_allows_one_more_request_gets_one_more() -> None:
    last = OK + b"Keep-Alive: timeout=5, max=1\r\ncontent-length: 5\r\n\r\nhello"
    async with serving(answering(last, last), answering(HELLO)) as server, opened() as client:
        for _ in range(3):
            assert await ask(client, server) == b"hello"


@on_both_loops
async def test_a_connection_is_used_so_often_and_no_more() -> None:
    async with serving(answering(HELLO, HELLO), answering(HELLO)) as server, opened(max_uses=2) as client:
        for _ in range(3):
            assert await ask(client, server) == b"hello"


@on_both_loops
async def test_no_more_connections_idle_than_there_is_room_for() -> None:
    closed = asyncio.Event()

    async def dropped(peer: Peer) -> None:
        await answering(HELLO)(peer)
        closed.set()

    async with serving(answering(HELLO, HELLO), dropped) as server, opened(max_idle=1) as client:
        first, second = await send(client, server), await send(client, server)
        for reply in (first, second):
            await reply.read(5)
            reply.close()
        await closed.wait()
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_an_idle_connection_expires() -> None:
    expired = asyncio.Event()

    async def script(peer: Peer) -> None:
        await answering(HELLO)(peer)
        expired.set()

    async with serving(script, answering(HELLO)) as server, opened(idle_expiry_s=SHORT_S) as client:
        await ask(client, server)
        await expired.wait()
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_a_peer_that_keeps_it_for_less_is_believed() -> None:
    expired = asyncio.Event()

    async def script(peer: Peer) -> None:
        await answering(OK + b"keep-alive: timeout=1\r\ncontent-length: 5\r\n\r\nhello")(peer)
        expired.set()

    async with serving(script) as server, opened() as client:
        await ask(client, server)
        await expired.wait()


@on_both_loops
async def test_the_expiry_of_an_idle_connection_does_not_touch_it_in_use() -> None:
    async def second_is_slow(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        await late.wait()
        await peer.send(HELLO)
        await peer.gone()

    late = asyncio.Event()
    async with serving(second_is_slow, answering()) as server, opened(idle_expiry_s=4 * SHORT_S) as client:
        await ask(client, server)
        asking = asyncio.create_task(ask(client, server))
        await asyncio.sleep(0)
        # When this one has waited twice as long in vain, the expiry has passed.
        with pytest.raises(UpstreamTimeout):
            await send(client, server, head_s=8 * SHORT_S)
        late.set()
        assert await asking == b"hello"


@pytest.mark.parametrize("farewell", [b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"])
@on_both_loops
async def test_an_idle_connection_that_is_closed_or_speaks_is_dropped(farewell: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await idle.wait()
        await peer.send(farewell)
        if not farewell:
            peer.fin()
        await peer.gone()
        dropped.set()

    idle, dropped = asyncio.Event(), asyncio.Event()
    async with serving(script, answering(HELLO)) as server, opened() as client:
        await ask(client, server)
        idle.set()
        await dropped.wait()
        assert await ask(client, server) == b"hello"


@pytest.mark.parametrize("ending", ["fin", "reset"])
@on_both_loops
async def test_a_request_that_meets_a_closing_connection_is_sent_again_at_once(ending: str) -> None:
    async def closing(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        peer.reset() if ending == "reset" else peer.fin()

    async with serving(closing, answering(HELLO)) as server, opened() as client:
        assert await ask(client, server) == b"hello"
        assert await ask(client, server) == b"hello"
        assert server.connections == 2


@on_both_loops
async def test_it_is_sent_again_once_only() -> None:
    async def closing(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        peer.reset()

    async def refusing(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async with serving(closing, refusing) as server, opened() as client:
        await ask(client, server)
        with pytest.raises(ConnectionLost) as failure:
            await ask(client, server)
        assert not failure.value.reused


@on_both_loops
async def test_it_is_not_sent_again_when_a_byte_of_the_reply_came() -> None:
    async def closing(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.request()
        await peer.send(b"H")
        peer.fin()

    async with serving(closing) as server, opened() as client:
        await ask(client, server)
        with pytest.raises(ConnectionLost) as failure:
            await ask(client, server)
        assert not failure.value.reused


@on_both_loops
async def test_silence_on_a_reused_connection_is_not_sent_again() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        await peer.gone()

    async with serving(silent) as server, opened() as client:
        await ask(client, server)
        with pytest.raises(UpstreamTimeout):
            await send(client, server, head_s=SHORT_S)


@on_both_loops
async def test_closed_it_keeps_no_connection() -> None:
    # Leaving it waits for the scripts, which wait for both connections to go.
    async with serving(answering(HELLO), answering(HELLO)) as server:
        client = Client(idle_expiry_s=LONG_S)
        idle, used = await send(client, server), await send(client, server)
        await idle.read(5)
        idle.close()
        await client.close()
        assert await used.read(5) == b"hello"
        used.close()
