"""A body comes over ASGI's receive, within its limits."""

import pytest

from corral.core.errors import BodyTimeout, BodyTooLarge
from corral.pipeline.answer import ClientGone, Headers
from corral.pipeline.asgi import AsgiInbound
from support.asgi_client import DISCONNECT, AsgiClient, body
from support.loops import on_both_loops

# Long enough for what is to succeed, short enough for what is to fail.
LONG_S = 20.0
SHORT_S = 0.05


def inbound(client: AsgiClient, headers: Headers | None = None) -> tuple[AsgiInbound, list[str]]:
    read: list[str] = []
    return AsgiInbound(headers or [], client.receive, lambda: read.append("read")), read


@on_both_loops
async def test_a_body_in_pieces_is_read_to_its_end() -> None:
    request, read = inbound(AsgiClient(body(b"ab", more=True), body(b"", more=True), body(b"c")))
    assert await request.body(3, LONG_S) == b"abc"
    assert read == ["read"]


@on_both_loops
async def test_messages_may_leave_out_what_is_empty() -> None:
    request, read = inbound(AsgiClient({"type": "http.request"}))
    assert await request.body(0, LONG_S) == b""
    assert read == ["read"]


@on_both_loops
async def test_a_body_that_grows_beyond_the_limit_is_refused_and_read_no_further() -> None:
    client = AsgiClient(body(b"ab", more=True), body(b"cd", more=True), body(b"never read"))
    request, read = inbound(client)
    with pytest.raises(BodyTooLarge, match="limit of 3 bytes"):
        await request.body(3, LONG_S)
    assert read == []
    assert (await client.receive())["body"] == b"never read"


@on_both_loops
async def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    client = AsgiClient(body(b"never read"))
    request, _ = inbound(client, [(b"content-length", b"4")])
    with pytest.raises(BodyTooLarge):
        await request.body(3, LONG_S)
    assert (await client.receive())["body"] == b"never read"


@on_both_loops
async def test_a_body_that_does_not_come_is_waited_for_within_its_limit() -> None:
    request, read = inbound(AsgiClient(body(b"a", more=True)))
    with pytest.raises(BodyTimeout, match=r"within 0\.05 s"):
        await request.body(3, SHORT_S)
    assert read == []


@on_both_loops
async def test_a_client_that_leaves_within_its_body_is_gone() -> None:
    request, read = inbound(AsgiClient(body(b"a", more=True), DISCONNECT))
    with pytest.raises(ClientGone):
        await request.body(3, LONG_S)
    assert read == []
