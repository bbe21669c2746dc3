"""Limits on silence, and backpressure."""

import asyncio

import pytest

from corral.core.errors import UpstreamTimeout
from support.exchanges import (
    CHUNKED,
    LONG_S,
    MUCH,
    OK,
    SHORT_S,
    answering,
    chunk,
    ending,
    murmur,
    opened,
    send,
    stepping,
)
from support.loops import on_both_loops
from support.raw_server import Peer, Script, serving

# Limits on silence.


@on_both_loops
async def test_until_it_is_changed_the_limit_of_the_head_goes_on() -> None:
    async with serving(ending(CHUNKED, "stay")) as server, opened() as client:
        with await send(client, server, head_s=SHORT_S) as reply, pytest.raises(UpstreamTimeout) as failure:
            await reply.splice(lambda _: None)
    assert failure.value.phase == "first_byte"


@on_both_loops
async def test_a_limit_may_change_with_each_piece() -> None:
    on = asyncio.Event()
    async with serving(stepping(CHUNKED, chunk(b"token"), on=on)) as server, opened() as client:
        on.set()
        with await send(client, server) as reply:
            on.set()
            with pytest.raises(UpstreamTimeout) as failure:
                await reply.splice(lambda _: reply.limit(SHORT_S, "between_tokens"))
    assert failure.value.phase == "between_tokens"


@on_both_loops
async def test_a_limit_on_silence_does_not_bound_the_whole() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while not over.is_set():
            await peer.send(chunk(b"token"))
            await asyncio.sleep(SHORT_S / 10)
        await peer.send(b"0\r\n\r\n")
        await peer.gone()

    over = asyncio.Event()
    async with serving(script, answering()) as server, opened() as client:
        with await send(client, server) as reply:
            reply.limit(8 * SHORT_S, "between_tokens")
            splicing = asyncio.create_task(reply.splice(lambda _: None))
            # Silence twice as long as the stream's limit has passed when this one gives up.
            with pytest.raises(UpstreamTimeout):
                await send(client, server, head_s=16 * SHORT_S)
            over.set()
            await splicing
            assert reply.complete


def murmuring(heard: bytes, then: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(heard)
        await murmur(peer, then)

    return script


@on_both_loops
async def test_what_the_reader_does_not_take_for_life_does_not_extend_the_limit() -> None:
    async with serving(murmuring(CHUNKED, chunk(b": ping\n\n"))) as server, opened() as client:
        with await send(client, server) as reply:
            reply.limit(4 * SHORT_S, "between_tokens")
            with pytest.raises(UpstreamTimeout):
                await reply.splice(lambda _: False)


@on_both_loops
async def test_bytes_that_bring_no_body_do_not_extend_the_limit() -> None:
    async with serving(murmuring(CHUNKED + chunk(b"token") + b"5;", b"x")) as server, opened() as client:
        with await send(client, server) as reply:
            reply.limit(4 * SHORT_S, "between_tokens")
            with pytest.raises(UpstreamTimeout):
                await reply.splice(lambda _: None)


@on_both_loops
async def test_a_limit_that_passes_before_anybody_reads_is_told_to_the_reader() -> None:
    async with serving(ending(CHUNKED, "stay"), answering()) as server, opened() as client:
        with await send(client, server) as reply:
            reply.limit(SHORT_S, "between_tokens")
            with pytest.raises(UpstreamTimeout):
                await send(client, server, head_s=2 * SHORT_S)
            with pytest.raises(UpstreamTimeout) as failure:
                await reply.read(5)
            assert failure.value.phase == "between_tokens"


# Backpressure.


@on_both_loops
async def test_paused_it_stops_the_upstream_and_trips_no_limit() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"content-length: %d\r\n\r\n" % MUCH)
        await peer.send(b"a" * MUCH)
        drained.set()
        await peer.gone()

    def feed(piece: bytes) -> None:
        came.extend(piece)
        if not paused.is_set():
            reply.limit(SHORT_S, "between_tokens")
            reply.pause()
            paused.set()

    came = bytearray()
    paused, drained = asyncio.Event(), asyncio.Event()
    async with serving(script, answering()) as server, opened() as client:
        with await send(client, server) as reply:
            splicing = asyncio.create_task(reply.splice(feed))
            await paused.wait()
            at_pause = len(came)
            # When this one gives up, the limit of the paused one has passed twice.
            with pytest.raises(UpstreamTimeout):
                await send(client, server, head_s=2 * SHORT_S)
            assert len(came) == at_pause
            assert not drained.is_set()
            assert not splicing.done()
            reply.limit(LONG_S, "between_tokens")
            reply.resume()
            await splicing
            assert len(came) == MUCH


@on_both_loops
async def test_resumed_it_bears_no_more_silence_than_before() -> None:
    def feed(piece: bytes) -> None:
        reply.pause()
        reply.resume()

    async with serving(ending(CHUNKED + chunk(b"a"), "stay")) as server, opened() as client:
        with await send(client, server) as reply:
            reply.limit(SHORT_S, "between_tokens")
            with pytest.raises(UpstreamTimeout):
                await reply.splice(feed)


@on_both_loops
async def test_paused_in_its_last_piece_it_ends_all_the_same() -> None:
    on = asyncio.Event()
    async with serving(stepping(CHUNKED, chunk(b"a") + b"0\r\n\r\n", on=on)) as server, opened() as client:
        on.set()
        with await send(client, server) as reply:
            on.set()
            await reply.splice(lambda _: reply.pause())
            assert reply.complete
