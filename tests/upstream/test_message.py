"""The parsing of one reply: what is accepted, what is refused, and that the cuts between pieces do not matter."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.upstream.message import MAX_HEAD_BYTES, MAX_HEADERS, Message

OK = b"HTTP/1.1 200 OK\r\n"


def parse(data: bytes, *, bodiless: bool = False) -> Message:
    message = Message(bodiless=bodiless)
    message.feed(data)
    return message


@pytest.mark.parametrize(
    ("data", "status", "body", "keep_alive"),
    [
        (OK + b"content-length: 2\r\n\r\nhi", 200, b"hi", True),
        (OK + b"content-length: 0\r\n\r\n", 200, b"", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n1\r\nh\r\n1;a=b\r\ni\r\n0\r\nx: trailer\r\n\r\n", 200, b"hi", True),
        (b"HTTP/1.1 503\r\ncontent-length: 0\r\n\r\n", 503, b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", 304, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", 200, b"hi", True),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"content-length: 0\r\n\r\n", 200, b"", True),
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
    ],
)
def test_a_reply_is_complete_when_its_framing_says_so(data: bytes, status: int, body: bytes, keep_alive: bool) -> None:
    message = parse(data)
    assert message.fault is None
    assert message.complete
    assert (message.status, message.take(), message.keep_alive) == (status, body, keep_alive)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nPRI",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi??",
        OK + b"no colon\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_fault(data: bytes) -> None:
    message = parse(data)
    assert message.fault is not None
    assert not message.complete
    assert not message.keep_alive


def test_body_before_a_fault_in_the_same_piece_is_kept() -> None:
    message = parse(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\nZZ\r\n")
    assert message.fault is not None
    assert message.take() == b"hi"


@pytest.mark.parametrize(
    "data",
    [
        OK + b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        OK + b"x: " + b"a" * MAX_HEAD_BYTES,
        OK + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
    ],
)
@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_a_head_without_measure_is_a_fault(data: bytes, piece_bytes: int) -> None:
    message = Message()
    for at in range(0, len(data), piece_bytes):
        message.feed(data[at : at + piece_bytes])
    assert message.fault is not None
    assert not message.head_complete


def test_trailers_without_end_are_a_fault() -> None:
    message = parse(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n")
    assert message.take() == b"hi"
    for _ in range(MAX_HEAD_BYTES // 1000 + 1):
        message.feed(b"x: " + b"a" * 995 + b"\r\n")
    assert message.fault is not None


def test_a_long_body_is_no_fault() -> None:
    message = parse(OK + b"content-length: %d\r\n\r\n" % (1000 * MAX_HEAD_BYTES))
    for _ in range(1000):
        message.feed(b"a" * MAX_HEAD_BYTES)
        message.take()
    assert message.complete


def test_a_body_without_length_ends_with_the_connection() -> None:
    message = parse(OK + b"\r\nhi")
    assert not message.complete
    message.feed(b" there")
    assert message.end()
    assert message.take() == b"hi there"
    assert not message.keep_alive


@pytest.mark.parametrize(
    "data",
    [
        b"",
        OK,
        OK + b"content-length: 3\r\n\r\nhi",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nhi",
    ],
)
def test_an_end_before_the_end_is_not_a_whole_reply(data: bytes) -> None:
    assert not parse(data).end()


def test_the_end_of_the_connection_spoils_it_for_the_next_reply() -> None:
    message = parse(OK + b"content-length: 0\r\n\r\n")
    assert message.keep_alive
    assert message.end()
    assert not message.keep_alive


def test_a_reply_to_head_has_no_body_whatever_its_length_says() -> None:
    message = parse(OK + b"content-length: 5\r\n\r\n", bodiless=True)
    assert message.complete
    assert not message.keep_alive


@pytest.mark.parametrize(
    "more", [OK + b"content-length: 3\r\nx: y\r\n\r\nbad", b"garbage", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("together", [True, False])
def test_what_follows_a_complete_reply_does_not_change_it(more: bytes, together: bool) -> None:
    first = OK + b"content-length: 2\r\n\r\nhi"
    message = parse(first + more if together else first)
    if not together:
        message.feed(more)
    assert message.fault is None
    assert (message.status, message.headers, message.take()) == (200, [(b"content-length", b"2")], b"hi")
    assert not message.keep_alive


def test_header_names_are_lower_case_and_repeated_ones_stay() -> None:
    message = parse(OK + b"Set-Cookie: a\r\nset-cookie: b\r\nEmpty:\r\n\r\n")
    assert message.headers == [(b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"empty", b"")]


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    interim=st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]),
    framing=st.sampled_from(["length", "chunked", "end"]),
    cuts=st.lists(st.integers(min_value=0, max_value=500), max_size=30),
)
def test_the_cuts_between_pieces_do_not_matter(
    pieces: list[bytes], interim: bytes, framing: str, cuts: list[int]
) -> None:
    body = b"".join(pieces)
    head = {"length": b"content-length: %d\r\n" % len(body), "chunked": b"transfer-encoding: chunked\r\n", "end": b""}
    data = interim + OK + b"X-A: b\r\n" + head[framing] + b"\r\n" + (chunked(pieces) if framing == "chunked" else body)

    message = Message()
    came = b""
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, stop in pairwise(edges):
        message.feed(data[start:stop])
        came += message.take()
    if framing == "end":
        assert not message.complete
        message.end()

    assert message.fault is None
    assert message.complete
    assert (message.status, message.headers[0], came) == (200, (b"x-a", b"b"), body)
    assert message.keep_alive is (framing != "end")
