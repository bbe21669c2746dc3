"""The body of a reply: read whole or spliced, paused, limited, cut, given up."""

import asyncio

import pytest

from corral.core.errors import BadReply, ConnectionLost, CorralError, UpstreamTimeout
from support.exchanges import (
    CHUNKED,
    HELLO,
    LONG_S,
    MUCH,
    OK,
    SHORT_S,
    answering,
    ask,
    chunk,
    ending,
    leave,
    opened,
    send,
    stepping,
)
from support.loops import on_both_loops
from support.raw_server import Peer, serving

# Whole bodies.


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (HELLO, "stay"),
        (CHUNKED + chunk(b"he") + chunk(b"llo") + b"0\r\n\r\n", "stay"),
        (OK + b"\r\nhello", "fin"),
        # llama-server closes a finished stream, whatever it advertises.
        (CHUNKED + chunk(b"hello") + b"0\r\n\r\n", "fin"),
        (HELLO, "fin"),
    ],
)
@on_both_loops
async def test_a_whole_body_is_read(data: bytes, how: str) -> None:
    async with serving(ending(data, how)) as server, opened() as client:
        with await send(client, server) as reply:
            assert await reply.read(5) == b"hello"
            assert reply.complete


@on_both_loops
async def test_a_stream_that_is_closed_after_its_end_is_whole() -> None:
    data = CHUNKED + b"".join(chunk(b"data: %d\n\n" % number) for number in range(1000)) + b"0\r\n\r\n"
    async with serving(ending(data, "fin"), answering(HELLO)) as server, opened() as client:
        with await send(client, server) as reply:
            pieces: list[bytes] = []
            await reply.splice(pieces.append)
            assert b"".join(pieces) == b"".join(b"data: %d\n\n" % number for number in range(1000))
            assert reply.complete
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_the_pieces_of_one_arrival_are_fed_together_and_by_no_task() -> None:
    fed: list[tuple[bytes, asyncio.Task[None] | None]] = []
    on = asyncio.Event()

    def feed(piece: bytes) -> None:
        fed.append((piece, asyncio.current_task()))
        on.set()

    script = stepping(CHUNKED, chunk(b"a") + chunk(b"b") + chunk(b"c"), chunk(b"d") + b"0\r\n\r\n", on=on)
    async with serving(script) as server, opened() as client:
        on.set()
        with await send(client, server) as reply:
            tasks = asyncio.all_tasks()
            on.set()
            await reply.splice(feed)
            assert asyncio.all_tasks() <= tasks
    assert fed == [(b"abc", None), (b"d", None)]


@on_both_loops
async def test_what_nobody_has_asked_for_yet_stays_in_the_kernel() -> None:
    ready = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"content-length: %d\r\n\r\n" % MUCH)
        peer.writer.write(b"a" * MUCH)
        ready.set()
        await peer.writer.drain()
        drained.set()
        await peer.gone()

    drained = asyncio.Event()
    async with serving(script, answering(*[HELLO] * 20)) as server, opened() as client:
        with await send(client, server) as reply:
            await ready.wait()
            # Twenty exchanges give the event loop time to read it all, if it would.
            for _ in range(20):
                await ask(client, server)
            assert not drained.is_set()
            assert len(await reply.read(MUCH)) == MUCH


# Bodies that break.


@pytest.mark.parametrize(
    ("data", "how", "expected"),
    [
        (OK + b"content-length: 6\r\n\r\nhello", "fin", ConnectionLost),
        (OK + b"content-length: 6\r\n\r\nhello", "reset", ConnectionLost),
        (OK + b"content-length: 6\r\n\r\nhello", "stay", UpstreamTimeout),
        (CHUNKED + chunk(b"hello"), "fin", ConnectionLost),
        (CHUNKED + chunk(b"hello"), "reset", ConnectionLost),
        (CHUNKED + chunk(b"hello"), "stay", UpstreamTimeout),
        (CHUNKED + b"6\r\nhello", "fin", ConnectionLost),
        (CHUNKED + chunk(b"hello") + b"0\r\n", "fin", ConnectionLost),
        (CHUNKED + chunk(b"hello") + b"ZZ\r\n", "stay", BadReply),
        (CHUNKED + b"5\r\nhelloXX", "stay", BadReply),
        (OK + b"\r\nhello", "reset", ConnectionLost),
    ],
)
@pytest.mark.parametrize("together", [True, False])
@on_both_loops
async def test_a_body_that_breaks_gives_what_came_and_then_its_fault(
    data: bytes, how: str, expected: type[CorralError], together: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await (peer.send(data) if together else peer.dribble(data))
        if how == "reset":
            # What the client has not read yet may be lost with a reset.
            await fed.wait()
        await leave(peer, how)

    fed = asyncio.Event()
    came = bytearray()

    def feed(piece: bytes) -> None:
        came.extend(piece)
        if came == b"hello":
            fed.set()
            reply.limit(SHORT_S if expected is UpstreamTimeout else LONG_S, "between_tokens")

    async with serving(script) as server, opened() as client:
        with await send(client, server) as reply:
            with pytest.raises(expected) as failure:
                await reply.splice(feed)
            assert not reply.complete
        assert came == b"hello"
        assert getattr(failure.value, "phase", "between_tokens") == "between_tokens"
        assert not getattr(failure.value, "reused", False)


@on_both_loops
async def test_a_body_that_is_too_long_is_refused() -> None:
    async with serving(answering(HELLO)) as server, opened() as client:
        with await send(client, server) as reply, pytest.raises(BadReply):
            await reply.read(4)


@on_both_loops
async def test_a_body_without_end_is_refused_as_soon_as_it_is_too_long() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(chunk(b"a" * 10_000))

    async with serving(script) as server, opened() as client:
        with await send(client, server) as reply, pytest.raises(BadReply):
            await reply.read(1_000_000)


@pytest.mark.parametrize("data", [CHUNKED + chunk(b"hello"), HELLO])
@on_both_loops
async def test_what_feed_raises_is_raised_and_closes_the_connection(data: bytes) -> None:
    class Enough(Exception):
        pass

    def feed(piece: bytes) -> None:
        raise Enough

    on = asyncio.Event()
    head, _, body = data.partition(b"\r\n\r\n")
    async with serving(stepping(head + b"\r\n\r\n", body, on=on), ending(data, "stay")) as server, opened() as client:
        on.set()
        # Raised in the socket's callback.
        with await send(client, server) as reply:
            on.set()
            with pytest.raises(Enough):
                await reply.splice(feed)
        # Raised for what had come before.
        with await send(client, server) as reply, pytest.raises(Enough):
            await reply.splice(feed)


# Ends of our own making.


@on_both_loops
async def test_finished_in_a_piece_it_returns_and_leaves_the_upstream() -> None:
    fed: list[bytes] = []

    def feed(piece: bytes) -> None:
        fed.append(piece)
        reply.finish()

    on = asyncio.Event()
    async with serving(stepping(CHUNKED, chunk(b"data: [DONE]\n\n"), on=on)) as server, opened() as client:
        on.set()
        with await send(client, server) as reply:
            on.set()
            await reply.splice(feed)
            assert fed == [b"data: [DONE]\n\n"]
            assert not reply.complete


@on_both_loops
async def test_finished_for_what_came_before_it_returns() -> None:
    async with serving(ending(CHUNKED + chunk(b"a"), "stay")) as server, opened() as client:
        with await send(client, server) as reply:
            await reply.splice(lambda _: reply.finish())
            assert not reply.complete


@on_both_loops
async def test_finished_from_outside_it_returns() -> None:
    async with serving(ending(CHUNKED + chunk(b"a"), "stay")) as server, opened() as client:
        with await send(client, server) as reply:
            begun = asyncio.Event()
            splicing = asyncio.create_task(reply.splice(lambda _: begun.set()))
            await begun.wait()
            reply.finish()
            await splicing


@on_both_loops
async def test_finished_when_it_is_complete_it_keeps_its_connection() -> None:
    async with serving(answering(HELLO, HELLO)) as server, opened() as client:
        with await send(client, server) as reply:
            await reply.splice(lambda _: reply.finish())
            assert reply.complete
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_closed_from_outside_a_splice_ends_with_an_error() -> None:
    async with serving(ending(CHUNKED + chunk(b"a"), "stay")) as server, opened() as client:
        reply = await send(client, server)
        begun = asyncio.Event()
        splicing = asyncio.create_task(reply.splice(lambda _: begun.set()))
        await begun.wait()
        reply.close()
        with pytest.raises(ConnectionLost):
            await splicing


@on_both_loops
async def test_closed_unread_it_leaves_the_upstream_and_twice_is_once() -> None:
    async with serving(ending(CHUNKED + chunk(b"a"), "stay"), answering(HELLO, HELLO)) as server, opened() as client:
        reply = await send(client, server)
        reply.close()
        reply.close()
        whole = await send(client, server)
        await whole.read(5)
        whole.close()
        with await send(client, server) as other:
            # The connection carries another reply now.
            whole.close()
            assert await other.read(5) == b"hello"


@pytest.mark.parametrize("method", ["read", "splice"])
@on_both_loops
async def test_cancelled_in_the_body_it_leaves_the_upstream_at_once(method: str) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await ending(CHUNKED + chunk(b"a"), "stay")(peer)
        left.set()

    async with serving(script) as server, opened() as client:
        reply = await send(client, server)
        reading = asyncio.create_task(reply.read(5) if method == "read" else reply.splice(lambda _: None))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        # Without close().
        await left.wait()
        reply.close()
