"""However a reply is cut into pieces and whenever they come, the reader gets the same."""

import asyncio
import gc
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.errors import ConnectionLost
from corral.upstream.address import Address
from corral.upstream.connection import Connection, IdleConnections
from corral.upstream.message import Message
from corral.upstream.reply import FeedChunk, Reply
from support.exchanges import CHUNKED, HELLO, OK, chunk
from support.run import async_test


class FedTransport(asyncio.Transport):
    """A transport without a socket: the test delivers what it is to read."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = asyncio.Event()
        self.reading.set()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading.clear()

    def resume_reading(self) -> None:
        self.reading.set()

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


def connected() -> tuple[Connection, FedTransport, IdleConnections]:
    idle = IdleConnections(expiry_s=60, max_uses=90, max_idle=64)
    connection = Connection(Address("127.0.0.1", 1), idle, asyncio.get_running_loop())
    transport = FedTransport()
    connection.connection_made(transport)
    return connection, transport, idle


async def deliver(connection: Connection, transport: FedTransport, pieces: Iterable[tuple[bytes, bool]]) -> None:
    """Give the pieces to the connection while it reads; with a turn of the loop before those marked so."""
    for piece, turn in pieces:
        if turn:
            await asyncio.sleep(0)
        await transport.reading.wait()
        if transport.closed:
            return
        connection.data_received(piece)


def no_chunk(_: bytes) -> bool:
    return False


async def fetch(
    pieces: Iterable[tuple[bytes, bool]], came: bytearray, feed_chunk: FeedChunk = no_chunk
) -> tuple[int, bool]:
    """Status, and whether it is complete, of a reply that comes in these pieces and then ends; the body to ``came``."""
    connection, transport, idle = connected()

    async def read() -> tuple[int, bool]:
        with await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", b"", 60, bodiless=False) as reply:
            await reply.splice(came.extend, feed_chunk)
            return reply.status, reply.complete

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await deliver(connection, transport, pieces)
    await transport.reading.wait()
    if not transport.closed:
        connection.eof_received()
    connection.connection_lost(None)
    status, complete = await reading
    assert idle.take(connection.address) is None
    return status, complete


cuts_and_turns = st.lists(st.tuples(st.integers(min_value=0, max_value=300), st.booleans()), max_size=30)


def cut(data: bytes, cuts: list[tuple[int, bool]]) -> list[tuple[bytes, bool]]:
    turns = {at: turn for at, turn in cuts if 0 < at < len(data)}
    edges = [0, *sorted(turns), len(data)]
    return [(data[start:stop], turns.get(start, False)) for start, stop in pairwise(edges)]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    framing=st.sampled_from(["length", "chunked", "end"]),
    cuts=cuts_and_turns,
)
def test_the_body_is_the_same_for_all_cuts(chunks: list[bytes], framing: str, cuts: list[tuple[int, bool]]) -> None:
    body = b"".join(chunks)
    data = {
        "length": OK + b"content-length: %d\r\n\r\n" % len(body) + body,
        "chunked": CHUNKED + b"".join(map(chunk, chunks)) + b"0\r\n\r\n",
        "end": OK + b"\r\n" + body,
    }[framing]
    came = bytearray()
    status, complete = asyncio.run(fetch(cut(data, cuts), came))
    assert (status, bytes(came), complete) == (200, body, True)


# Chunks that come one by one, or nearly: the sizes of what they hold, and where they are cut besides.
@given(
    chunks=st.lists(st.sampled_from([b"a", b"bb", b"1\r\nc\r\n", b"d\r\n" * 4, b"0\r\n\r\n"]), max_size=12),
    cuts=cuts_and_turns,
    takes=st.lists(st.booleans(), max_size=12),
)
def test_a_chunk_that_is_handed_over_as_it_came_is_one(
    chunks: list[bytes], cuts: list[tuple[int, bool]], takes: list[bool]
) -> None:
    def feed_chunk(piece: bytes) -> bool:
        size, _, rest = piece.partition(b"\r\n")
        if not takes or not takes.pop() or chunk(rest[:-2]) != piece or size == b"0":
            return False
        came.extend(rest[:-2])
        return True

    came = bytearray()
    pieces = [
        part
        for each in [CHUNKED, *map(chunk, chunks), b"0\r\n\r\n"]
        for part in cut(each, [(at, turn) for at, turn in cuts if at % 3 == len(each) % 3])
    ]
    assert asyncio.run(fetch(pieces, came, feed_chunk)) == (200, True)
    assert bytes(came) == b"".join(chunks)


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6),
    lost_bytes=st.integers(min_value=1, max_value=300),
    cuts=cuts_and_turns,
)
def test_a_reply_cut_short_gives_a_prefix_and_an_error(
    chunks: list[bytes], lost_bytes: int, cuts: list[tuple[int, bool]]
) -> None:
    data = CHUNKED + b"".join(map(chunk, chunks)) + b"0\r\n\r\n"
    came = bytearray()
    with pytest.raises(ConnectionLost):
        asyncio.run(fetch(cut(data[: max(1, len(data) - lost_bytes)], cuts), came))
    assert b"".join(chunks).startswith(came)


@pytest.mark.parametrize("end", ["whole", "finished", "given up"])
@async_test
async def test_nothing_of_it_waits_for_the_garbage_collector(end: str) -> None:
    gc.collect()
    # An earlier test of the same process may have left some: a failed example keeps its frames.
    before = parts_of_exchanges()
    gc.disable()
    try:
        await exchange_and_lose(end)
        # The event loop holds the result of a task for one turn more.
        await asyncio.sleep(0)
        left = [type(each) for each in parts_of_exchanges() if not any(each is one for one in before)]
        assert left == []
    finally:
        gc.enable()


def parts_of_exchanges() -> list[object]:
    """Every connection, message and reply that is alive in this process."""
    return [each for each in gc.get_objects() if type(each) in (Connection, Message, Reply)]


async def exchange_and_lose(end: str) -> None:
    connection, _, _ = connected()
    asking = asyncio.create_task(connection.exchange(b"", b"", 60, bodiless=False))
    await asyncio.sleep(0)
    connection.data_received(HELLO if end == "whole" else CHUNKED + chunk(b"hello"))
    with await asking as reply:
        if end != "given up":
            await reply.splice(lambda _: reply.finish())
    connection.connection_lost(None)
