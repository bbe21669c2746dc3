"""Heads that come slowly, grow large, or can be read in two ways."""

import time

import pytest

from support.edge import Edge
from support.raw_client import RawClient
from support.spelled import (
    AUTHORIZED,
    CHUNKED,
    HEALTH,
    HOST,
    JSON,
    POST,
    SHORT,
    Answer,
    answers_of,
    ended,
    exchanged,
    in_chunks,
    posted,
    spelled,
)
from support.talk import CHAT

LENGTH = f"Content-Length: {len(SHORT)}"
LIMIT_BYTES = 64 * 1024
SMUGGLED = posted()


def only(answers: list[Answer]) -> Answer:
    (answer,) = answers
    assert answer.whole
    return answer


def ensure_refused(answers: list[Answer], status: int, code: str) -> None:
    """There is one answer: an error in OpenAI's shape that says that the connection ends."""
    answer = only(answers)
    assert (answer.status, answer.code, answer.closes) == (status, code, True)
    assert answer.headers["x-request-id"]


# -- slow ------------------------------------------------------------------------


def test_a_client_that_says_nothing_is_left(edge: Edge) -> None:
    assert exchanged(edge.port, b"") == []


def test_line_ends_alone_are_no_head(edge: Edge) -> None:
    ensure_refused(exchanged(edge.port, b"\r\n\r\n"), 408, "request_timeout")


def test_a_head_that_stops_is_given_up(edge: Edge) -> None:
    ensure_refused(exchanged(edge.port, posted()[:40]), 408, "request_timeout")


def test_a_head_that_trickles_is_given_up(edge: Edge) -> None:
    """Each byte is in time, the head is not."""
    with RawClient(edge.port) as client:
        client.socket.settimeout(0.05)
        begun = time.monotonic()
        data = b""
        for byte in posted("X: " + "y" * 10_000):
            client.socket.sendall(bytes((byte,)))
            try:
                data = client.socket.recv(1 << 16)
                break
            except TimeoutError:
                # Hangs if nobody ever answers.
                assert time.monotonic() < begun + 10
    assert data.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in data


def test_the_next_head_on_a_connection_has_as_much_time_as_the_first(edge: Edge) -> None:
    ensure_refused(exchanged(edge.port, HEALTH + posted()[:40])[1:], 408, "request_timeout")


# -- large -----------------------------------------------------------------------

LARGE = {
    "one huge header": posted("X: " + "y" * 200_000),
    "a header that does not end": spelled(POST, HOST, "X: " + "y" * 2_000_000),
    "thousands of headers": posted(*(f"X-{n}: y" for n in range(10_000))),
    "a huge target": posted(line=f"POST {CHAT}?{'y' * 200_000} HTTP/1.1"),
    "a huge target of nowhere": posted(line=f"POST /{'y' * 200_000} HTTP/1.1"),
    "a huge name": posted("y" * 200_000 + ": x"),
    "a little too much": posted("X: " + "y" * LIMIT_BYTES),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_head_is_refused(edge: Edge, name: str) -> None:
    ensure_refused(exchanged(edge.port, LARGE[name]), 431, "request_headers_too_large")
    assert edge.ran() == []


def test_a_large_head_is_refused_however_it_is_cut(edge: Edge) -> None:
    data = LARGE["thousands of headers"]
    with RawClient(edge.port) as client:
        for start in range(0, len(data), 1000):
            client.socket.sendall(data[start : start + 1000])
        ensure_refused(ended(client), 431, "request_headers_too_large")
    assert edge.ran() == []


def test_a_large_head_behind_another_request_is_refused(edge: Edge) -> None:
    first, *others = exchanged(edge.port, HEALTH + LARGE["one huge header"])
    assert first.status == 200
    assert [other.status for other in others] in ([], [431])
    assert edge.ran() == []


def test_a_head_of_nearly_the_limit_is_served(edge: Edge) -> None:
    answer = only(exchanged(edge.port, posted("X: " + "y" * (LIMIT_BYTES - 1000), "Connection: close")))
    assert answer.status == 200


# -- ambiguous, or no HTTP/1.1 at all --------------------------------------------

NO_BODY = (HOST, AUTHORIZED, JSON)
ODD = {
    "two lengths that differ": posted("Content-Length: 5"),
    "two lengths that agree": posted(LENGTH),
    "a list of lengths": spelled(POST, *NO_BODY, f"{LENGTH}, {len(SHORT)}", body=SHORT),
    "a signed length": spelled(POST, *NO_BODY, f"Content-Length: +{len(SHORT)}", body=SHORT),
    "a negative length": spelled(POST, *NO_BODY, "Content-Length: -1", body=SHORT),
    "a length in hex": spelled(POST, *NO_BODY, "Content-Length: 0x55", body=SHORT),
    "a length beyond 64 bits": spelled(POST, *NO_BODY, f"Content-Length: {2**64 + len(SHORT)}", body=SHORT),
    "an empty length": spelled(POST, *NO_BODY, "Content-Length:", body=SHORT),
    "a length, then chunks": spelled(POST, *NO_BODY, LENGTH, CHUNKED, body=in_chunks(SHORT)),
    "chunks, then a length": spelled(POST, *NO_BODY, CHUNKED, LENGTH, body=in_chunks(SHORT)),
    "chunks twice": spelled(POST, *NO_BODY, CHUNKED, CHUNKED, body=in_chunks(SHORT)),
    "chunked, chunked": spelled(POST, *NO_BODY, f"{CHUNKED}, chunked", body=in_chunks(SHORT)),
    "gzip, chunked": spelled(POST, *NO_BODY, "Transfer-Encoding: gzip, chunked", body=in_chunks(SHORT)),
    "identity": spelled(POST, *NO_BODY, "Transfer-Encoding: identity", body=SHORT),
    "xchunked": spelled(POST, *NO_BODY, "Transfer-Encoding: xchunked", body=in_chunks(SHORT)),
    "chunked, identity": spelled(POST, *NO_BODY, f"{CHUNKED}, identity", body=in_chunks(SHORT)),
    "a vertical tab": spelled(POST, *NO_BODY, b"Transfer-Encoding: \x0bchunked", body=in_chunks(SHORT)),
    "an empty coding": spelled(POST, *NO_BODY, "Transfer-Encoding:", body=SHORT),
    "a space before the colon": spelled(POST, *NO_BODY, f"Content-Length : {len(SHORT)}", body=SHORT),
    "a folded header": posted("X: a\r\n b"),
    "a folded key": spelled(POST, HOST, "Authorization:\r\n Bearer local", JSON, LENGTH, body=SHORT),
    "line feeds alone": spelled(POST, *NO_BODY, LENGTH, body=SHORT, ends=b"\n"),
    "one line feed alone": posted("X: a\nY: b"),
    "one carriage return alone": posted("X: a\rY: b"),
    "NUL in a value": posted("X: a\0b"),
    "NUL in a name": posted("X\0: a"),
    "no name": posted(": a"),
    "no colon": posted("a"),
    "two hosts": posted("Host: y"),
    "no host": spelled(POST, AUTHORIZED, JSON, LENGTH, body=SHORT),
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/1.2": posted(line=f"POST {CHAT} HTTP/1.2"),
    "HTTP/2.0": posted(line=f"POST {CHAT} HTTP/2.0"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"x" * 200,
    "a method in lower case": posted(line=f"post {CHAT} HTTP/1.1"),
    "a target without a slash": posted(line="POST v1/chat/completions HTTP/1.1"),
    "an authority for a target": posted(line="POST x:80 HTTP/1.1"),
    "an absolute target without a path": spelled("GET http:// HTTP/1.1", HOST),
    "an absolute target with no such port": posted(line=f"POST http://x:99999{CHAT} HTTP/1.1"),
    "an absolute target with a word for a port": posted(line=f"POST http://x:y{CHAT} HTTP/1.1"),
    "a target that is not ASCII": posted(line=b"POST /\xff\xfe HTTP/1.1"),
    "CONNECT": spelled("CONNECT x:80 HTTP/1.1", HOST, AUTHORIZED),
    "CONNECT with a body": posted(line="CONNECT x:80 HTTP/1.1"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_read_in_one_way_is_refused_and_nothing_behind_it_runs(edge: Edge, name: str) -> None:
    ensure_refused(exchanged(edge.port, ODD[name] + SMUGGLED), 400, "invalid_http")
    assert edge.ran() == []


# -- unusual, and sound ----------------------------------------------------------

SOUND = {
    "an absolute target": posted(line=f"POST http://elsewhere{CHAT} HTTP/1.1"),
    "a query": posted(line=f"POST {CHAT}?a=b HTTP/1.1"),
    "line ends before it": b"\r\n\r\n" + posted(),
    "a header without a value": posted("X:"),
    "a tab before the value": posted("X:\ty"),
    "an expectation of something else": posted("Expect: nothing"),
    "an upgrade to h2c": posted("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAA"),
    "an upgrade to h2c, in chunks": spelled(
        POST, *NO_BODY, CHUNKED, "Connection: upgrade", "Upgrade: h2c", body=in_chunks(SHORT, 7)
    ),
    "an upgrade to a websocket": posted("Connection: Upgrade", "Upgrade: websocket"),
    "many that ask for an upgrade": posted("Connection: upgrade", "Upgrade: a", "Upgrade: b"),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_unusual_and_sound_is_served_and_so_is_what_follows(edge: Edge, name: str) -> None:
    answers = exchanged(edge.port, SOUND[name] * 2 + posted("Connection: close"))
    assert [(answer.status, answer.closes) for answer in answers] == [(200, False), (200, False), (200, True)]
    assert edge.ran() == ["hello"] * 3


@pytest.mark.parametrize("name", [name for name in SOUND if "upgrade" in name])
def test_a_request_that_asks_for_an_upgrade_may_come_in_pieces(edge: Edge, name: str) -> None:
    data = SOUND[name]
    for cut in range(len(data) - 95, len(data), 10):
        with RawClient(edge.port) as client:
            client.socket.sendall(data[:cut])
            # One round trip each way, so that the pieces are read apart.
            edge.gateway.metric("corral_requests_total")
            client.socket.sendall(data[cut:] + posted("Connection: close"))
            assert [answer.status for answer in ended(client)] == [200, 200]


def test_the_body_of_an_upgrade_is_no_request(edge: Edge) -> None:
    smuggling = posted("Connection: Upgrade", "Upgrade: x", body=SMUGGLED)
    first, second = exchanged(edge.port, smuggling + posted("Connection: close"))
    assert (first.code, second.status) == ("invalid_json", 200)
    assert edge.ran() == ["hello"]


@pytest.mark.parametrize("line", ["OPTIONS * HTTP/1.1", "M-SEARCH * HTTP/1.1"])
def test_a_star_is_no_route(edge: Edge, line: str) -> None:
    first, second = exchanged(edge.port, spelled(line, HOST) + spelled("GET /health HTTP/1.0"))
    assert (first.status, first.code, second.status) == (404, "unknown_url", 200)


@pytest.mark.parametrize("keep", [[], ["Connection: keep-alive"]])
@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_is_answered_without_chunks_and_ends_the_connection(edge: Edge, keep: list[str], stream: bool) -> None:
    body = SHORT[:-1] + b', "stream": true}' if stream else SHORT
    line = f"POST {CHAT} HTTP/1.0"
    request = spelled(line, AUTHORIZED, JSON, f"Content-Length: {len(body)}", *keep, body=body)
    answer = only(exchanged(edge.port, request + posted()))
    assert (answer.status, answer.closes) == (200, True)
    assert "transfer-encoding" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n" if stream else b"}")
    assert edge.ran() == ["hello"]


# -- keep-alive ------------------------------------------------------------------


def test_an_idle_connection_is_closed_in_time_and_not_before(edge: Edge) -> None:
    with RawClient(edge.port) as client:
        client.socket.sendall(posted())
        first = answers_of(client.receive(until=b"}}"))
        assert not only(first).closes
        begun = time.monotonic()
        assert ended(client) == []
        # The setting is one second.
        assert time.monotonic() > begun + 0.9
