"""What the client sends, and what it does with the heads that come back."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from corral.core.errors import BadReply, ConnectionLost, CorralError, UpstreamTimeout
from corral.upstream.wire import Address
from support.exchanges import CHUNKED, HELLO, LONG_S, OK, SHORT_S, answering, ask, chunk, ending, opened, send
from support.loops import on_both_loops
from support.raw_server import Peer, RawServer, serving


@on_both_loops
async def test_the_server_sees_one_exact_request() -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(HELLO)
        await peer.gone()

    async with serving(script) as server, opened() as client:
        address = Address(server.address.host, server.address.port, prefix="/llama")
        headers = [(b"authorization", b"Bearer k"), (b"x-request-id", b"1"), (b"x-100%b", b"%b")]
        with await client.send(
            address, "POST", "/v1/x?a=%62", headers=headers, body=b"{}", connect_s=LONG_S, head_s=LONG_S
        ) as reply:
            assert reply.status == 200
            assert reply.header(b"content-length") == b"5"
            assert reply.header(b"x-other") is None
            assert await reply.read(5) == b"hello"
            assert reply.complete
        assert seen[0].decode().split("\r\n") == [
            "POST /llama/v1/x?a=%62 HTTP/1.1",
            f"host: {address}",
            "connection: keep-alive",
            "accept: */*",
            "authorization: Bearer k",
            "x-request-id: 1",
            "x-100%b: %b",
            "content-length: 2",
            "",
            "{}",
        ]


@on_both_loops
async def test_a_get_says_nothing_of_a_body_and_may_choose_what_it_accepts() -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(HELLO)
        await peer.gone()

    async with serving(script) as server, opened() as client:
        with await client.send(
            server.address, "GET", "/health", headers=[(b"Accept", b"text/plain")], connect_s=LONG_S, head_s=LONG_S
        ) as reply:
            await reply.read(5)
    lines = seen[0].lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"accept")] == [b"accept: text/plain"]
    assert not [line for line in lines if line.startswith(b"content-length")]


@pytest.mark.parametrize("body_bytes", [0, 1, 65535, 65536, 5_000_000])
@on_both_loops
async def test_a_body_of_any_size_arrives(body_bytes: int) -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(HELLO)
        await peer.gone()

    async with serving(script) as server, opened() as client:
        with await send(client, server, b"b" * body_bytes) as reply:
            assert await reply.read(5) == b"hello"
    assert seen[0].partition(b"\r\n\r\n")[2] == b"b" * body_bytes


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "/v1/x", (b"x-a", b"b\r\nx-evil: 1")),
        ("POST", "/v1/x", (b"x-a", b"b\nx-evil: 1")),
        ("POST", "/v1/x", (b"x-a", b"b\0")),
        ("POST", "/v1/x", (b"x-a\r\nx-evil", b"1")),
        ("POST", "/v1/x", (b"x-a\n", b"1")),
        ("POST", "/v1/x", (b"x a", b"1")),
        ("POST", "/v1/x", (b"x-a:", b"1")),
        ("POST", "/v1/x", (b"", b"1")),
        ("POST", "/v1/x", (b"Content-Length", b"1")),
        ("POST", "/v1/x", (b"transfer-encoding", b"chunked")),
        ("POST", "/v1/x", (b"Host", b"other")),
        ("POST", "/v1/x", (b"connection", b"close")),
        ("POST", "/v1/x HTTP/1.1\r\nx-evil: 1", (b"x-a", b"1")),
        ("POST", "/v1/x\n", (b"x-a", b"1")),
        ("POST", "", (b"x-a", b"1")),
        ("GET /other", "/v1/x", (b"x-a", b"1")),
    ],
)
@on_both_loops
async def test_what_would_break_out_of_the_head_is_refused(method: str, path: str, header: tuple[bytes, bytes]) -> None:
    async with serving() as server, opened() as client:
        with pytest.raises(ValueError, match=r".+"):
            await client.send(server.address, method, path, headers=[header], connect_s=LONG_S, head_s=LONG_S)
        assert server.connections == 0


@on_both_loops
async def test_small_pieces_are_not_held_back_by_the_kernel() -> None:
    assert await option_of_a_connection(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def option_of_a_connection(level: int, name: int) -> int:
    async with serving(ending(CHUNKED + chunk(b"a"), "stay")) as server, opened() as client:
        sockets_before = set(own_sockets(server))
        with await send(client, server):
            (number,) = set(own_sockets(server)) - sockets_before
            with socket.socket(fileno=number) as connection:
                value = connection.getsockopt(level, name)
                connection.detach()
        return value


def own_sockets(server: RawServer) -> Iterator[int]:
    """The descriptors of this process that are connected to the server."""
    for number in range(1024):
        try:
            connection = socket.socket(fileno=number)
        except OSError:
            continue
        try:
            if connection.getpeername() == (server.address.host, server.address.port):
                yield number
        except OSError:
            pass
        finally:
            connection.detach()


FAULTS: dict[str, tuple[bytes, str, type[CorralError]]] = {
    "closed without a byte": (b"", "fin", ConnectionLost),
    "reset without a byte": (b"", "reset", ConnectionLost),
    "closed in the status line": (b"HTTP/1.1 20", "fin", ConnectionLost),
    "closed in the headers": (OK + b"content-le", "fin", ConnectionLost),
    "reset in the headers": (OK + b"content-le", "reset", ConnectionLost),
    "closed after an interim reply": (b"HTTP/1.1 100 Continue\r\n\r\n", "fin", ConnectionLost),
    "silent": (b"", "stay", UpstreamTimeout),
    "silent in the headers": (OK + b"content-le", "stay", UpstreamTimeout),
    "silent after an interim reply": (b"HTTP/1.1 100 Continue\r\n\r\n", "stay", UpstreamTimeout),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "stay", BadReply),
    "a protocol nobody asked for": (b"HTTP/1.1 101 Up\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "stay", BadReply),
    "two lengths": (OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", "stay", BadReply),
    "a header without end": (OK + b"x: " + b"a" * 70_000, "stay", BadReply),
    "too many headers": (OK + b"x: y\r\n" * 201 + b"\r\n", "stay", BadReply),
}


@pytest.mark.parametrize("fault", FAULTS)
@on_both_loops
async def test_a_fault_before_the_body_is_told_by_its_kind(fault: str) -> None:
    sent, ending, expected = FAULTS[fault]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        if ending == "fin":
            peer.fin()
        elif ending == "reset":
            peer.reset()
        else:
            await peer.gone()

    async with serving(script) as server, opened() as client:
        with pytest.raises(expected) as failure:
            await send(client, server, head_s=SHORT_S if expected is UpstreamTimeout else LONG_S)
        assert getattr(failure.value, "phase", "first_byte") == "first_byte"
        assert not getattr(failure.value, "reused", False)
        assert server.connections == 1


@on_both_loops
async def test_a_head_that_dribbles_does_not_extend_its_limit() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.dribble(OK + b"x: " + b"a" * 60_000)
        await peer.gone()

    async with serving(script) as server, opened() as client:
        with pytest.raises(UpstreamTimeout):
            await send(client, server, head_s=SHORT_S)


@on_both_loops
async def test_a_reply_byte_by_byte_is_a_reply() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.dribble(b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO)
        await peer.gone()

    async with serving(script) as server, opened() as client:
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_an_early_refusal_counts_though_the_request_cannot_be_written() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 4\r\n\r\nlong")

    async with serving(script) as server, opened() as client:
        with await send(client, server, b"b" * 20_000_000) as reply:
            assert reply.status == 413
            assert await reply.read(4) == b"long"


@on_both_loops
async def test_after_an_early_refusal_the_connection_is_not_used_again() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        # Reads nothing more until the client has left.
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # It reads, too.
        await refused.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]  # It reads, too.
        await peer.gone()

    refused = asyncio.Event()
    async with serving(refuse, answering(HELLO)) as server, opened() as client:
        with await send(client, server, b"b" * 20_000_000) as reply:
            assert reply.status == 413
        refused.set()
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_cancelled_while_it_waits_for_the_head_it_leaves_at_once() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async with serving(script) as server, opened() as client:
        sending = asyncio.create_task(send(client, server))
        await asked.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


@on_both_loops
async def test_a_reply_to_head_has_no_body() -> None:
    async with serving(answering(OK + b"content-length: 5\r\n\r\n")) as server, opened() as client:
        with await client.send(server.address, "HEAD", "/", connect_s=LONG_S, head_s=LONG_S) as reply:
            assert reply.status == 200
            assert await reply.read(0) == b""
