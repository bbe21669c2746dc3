"""Bodies that come slowly, grow large or deep, or are framed to confuse."""

import json
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
from support.talk import CHAT, chat, new_id, record_of

BODY_BYTES = 2**20
CLOSE = "Connection: close"


def chunked(body: bytes, *headers: str) -> bytes:
    return spelled(POST, HOST, AUTHORIZED, JSON, CHUNKED, *headers, body=body)


def declared(length: int, *headers: str, line: str = POST, key: str = AUTHORIZED) -> bytes:
    """A head that announces a body of this length."""
    return spelled(line, HOST, key, JSON, f"Content-Length: {length}", *headers)


def ensure_refused(answers: list[Answer], status: int, code: str) -> None:
    """There is one answer: an error in OpenAI's shape that says that the connection ends."""
    (answer,) = answers
    assert answer.whole
    assert (answer.status, answer.code, answer.closes) == (status, code, True)
    assert answer.headers["x-request-id"]


# -- slow ------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "start"), [(CHAT, b""), (CHAT, SHORT[:-1]), (f"{CHAT}?by=the-app", b"{")])
def test_a_body_that_stops_is_given_up(edge: Edge, path: str, start: bytes) -> None:
    request_id = new_id()
    head = declared(len(SHORT), f"X-Request-Id: {request_id}", line=f"POST {path} HTTP/1.1")
    (answer,) = exchanged(edge.port, head + start)
    assert (answer.status, answer.code, answer.whole) == (408, "request_timeout", True)
    # What the app answers before it has read the request ends the connection without a word of it.
    assert answer.closes or path != CHAT
    assert record_of(edge.gateway, request_id)["outcome"] == "refused"


def test_a_body_that_trickles_is_given_up(edge: Edge) -> None:
    """Each byte is in time, the body is not."""
    body = in_chunks(SHORT + b" " * 1000, 1)
    with RawClient(edge.port) as client:
        client.socket.sendall(chunked(b""))
        client.socket.settimeout(0.05)
        begun = time.monotonic()
        data = b""
        for byte in body:
            client.socket.sendall(bytes((byte,)))
            try:
                data = client.socket.recv(1 << 16)
                break
            except TimeoutError:
                # Hangs if nobody ever answers.
                assert time.monotonic() < begun + 10
    assert data.startswith(b"HTTP/1.1 408 ")


# -- large -----------------------------------------------------------------------


@pytest.mark.parametrize("expects", [[], ["Expect: 100-continue"]])
def test_a_declared_length_beyond_the_limit_is_refused_at_once(edge: Edge, expects: list[str]) -> None:
    with RawClient(edge.port) as client:
        client.socket.sendall(declared(BODY_BYTES + 1, *expects))
        reply = client.receive(until=b"}}")
    assert reply.raw.startswith(b"HTTP/1.1 413 ")
    ensure_refused(answers_of(reply), 413, "request_too_large")


GREEDY = {
    "a declared length": declared(100 * BODY_BYTES) + b" " * 20 * BODY_BYTES,
    "chunks": chunked(in_chunks(b" " * 20 * BODY_BYTES, 100_000)),
    "one chunk": chunked(in_chunks(b" " * 20 * BODY_BYTES, 20 * BODY_BYTES)),
    "a chunk of 2^64 - 1": chunked(b"ffffffffffffffff\r\n" + b" " * 20 * BODY_BYTES),
}


@pytest.mark.parametrize("name", GREEDY)
def test_the_client_reads_why_even_when_it_sends_to_the_end_before_it_reads(edge: Edge, name: str) -> None:
    """To close while it sends would be a reset, which takes the answer out of its hands."""
    ensure_refused(exchanged(edge.port, GREEDY[name]), 413, "request_too_large")
    assert edge.ran() == []


@pytest.mark.parametrize("path", [CHAT, f"{CHAT}?by=the-app", "/nowhere"])
@pytest.mark.parametrize("close", [[], [CLOSE]])
def test_a_stranger_who_sends_much_reads_his_answer_too(edge: Edge, path: str, close: list[str]) -> None:
    head = declared(BODY_BYTES, *close, line=f"POST {path} HTTP/1.1", key="Authorization: Bearer wrong")
    (answer,) = exchanged(edge.port, head + b" " * (BODY_BYTES - 1))
    assert answer.code == ("unknown_url" if path == "/nowhere" else "invalid_api_key")


def trickle(client: RawClient, limit_s: float) -> None:
    """Send a little at a time for so long."""
    begun = time.monotonic()
    while time.monotonic() < begun + limit_s:
        client.socket.sendall(b" " * 1000)
        time.sleep(0.01)


def test_who_goes_on_sending_for_ever_is_cut(edge: Edge) -> None:
    with RawClient(edge.port) as client:
        client.socket.sendall(declared(100 * BODY_BYTES))
        with pytest.raises(ConnectionError):
            trickle(client, limit_s=20)


def test_a_client_that_waits_for_100_gets_it_once_and_only_for_a_body_that_may_come(edge: Edge) -> None:
    for head, word in (
        (declared(len(SHORT), "Expect: 100-continue"), b"HTTP/1.1 100 "),
        (declared(len(SHORT), "Expect: 100-continue", key="X: y"), b"HTTP/1.1 401 "),
        (declared(len(SHORT), "Expect: 100-continue", line=f"POST {CHAT} HTTP/1.0"), b"HTTP/1.1 408 "),
    ):
        with RawClient(edge.port) as client:
            client.socket.sendall(head)
            assert client.receive(until=b"\r\n\r\n").raw.startswith(word)
            if b" 100 " in word:
                client.socket.sendall(SHORT + posted(CLOSE))
                reply = client.receive()
                assert b"HTTP/1.1 100 " not in reply.raw
                assert [answer.status for answer in answers_of(reply)] == [200, 200]


@pytest.mark.parametrize("what", ["[", '{"a":'])
def test_json_that_is_nested_too_deeply_is_refused(edge: Edge, what: str) -> None:
    for depth in (100, 100_000):
        body = b'{"model": "one", "messages": ' + what.encode() * depth
        first, second = exchanged(edge.port, posted(body=body) + posted(CLOSE))
        assert (first.status, second.status) == (400, 200)
        assert first.code == "invalid_json"


def test_sound_json_that_is_nested_too_deeply_is_refused(edge: Edge) -> None:
    body = json.dumps(chat(metadata={"a": "DEEP"})).replace('"DEEP"', "[" * 100 + "]" * 100).encode()
    (answer,) = exchanged(edge.port, posted(CLOSE, body=body))
    assert answer.status == 400
    assert answer.code
    assert edge.ran() == []


# -- chunks ----------------------------------------------------------------------

SOUND = {
    "a byte each": in_chunks(SHORT, 1),
    "an extension": in_chunks(SHORT, 7, b';name=value;other="a b"'),
    "zeros before the size": in_chunks(SHORT).replace(b"55\r\n", b"00000055\r\n", 1),
    "a size in capitals": in_chunks(SHORT + b" " * (0xAB - len(SHORT))).replace(b"ab\r\n", b"AB\r\n", 1),
    "trailers": in_chunks(SHORT, 7, trailers=b"X: y\r\nExpires: never\r\n"),
    "trailers that ask for an upgrade": in_chunks(SHORT, trailers=b"Connection: upgrade\r\nUpgrade: x\r\n"),
    "trailers with another host": in_chunks(SHORT, trailers=b"Host: y\r\n"),
}


@pytest.mark.parametrize("name", SOUND)
def test_chunks_are_put_together_and_the_next_request_is_the_next(edge: Edge, name: str) -> None:
    answers = exchanged(edge.port, chunked(SOUND[name]) + posted(CLOSE))
    assert [answer.status for answer in answers] == [200, 200]
    assert edge.ran() == ["hello", "hello"]


@pytest.mark.parametrize("name", SOUND)
def test_chunks_may_be_cut_anywhere(edge: Edge, name: str) -> None:
    with RawClient(edge.port) as client:
        data = chunked(SOUND[name], CLOSE)
        for start in range(0, len(data), 11):
            client.socket.sendall(data[start : start + 11])
        assert [answer.status for answer in ended(client)] == [200]


def test_trailers_may_ask_to_close(edge: Edge) -> None:
    (answer,) = exchanged(edge.port, chunked(in_chunks(SHORT, trailers=b"Connection: close\r\n")) + posted())
    assert (answer.status, answer.closes) == (200, True)
    assert edge.ran() == ["hello"]


@pytest.mark.parametrize("trailers", [f"{AUTHORIZED}\r\n", f"Authorization: x\r\n{AUTHORIZED}\r\n"])
def test_a_key_in_the_trailers_is_none(edge: Edge, trailers: str) -> None:
    body = in_chunks(SHORT, trailers=trailers.encode())
    answers = exchanged(edge.port, spelled(POST, HOST, JSON, CHUNKED, body=body) + posted(CLOSE))
    assert [answer.status for answer in answers] == [401, 200]


BROKEN = {
    "a negative size": b"-1\r\n" + SHORT,
    "a size in 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\n" + SHORT,
    "a word for a size": b"size\r\n" + SHORT,
    "a size of 17 digits": b"1" + b"0" * 16 + b"\r\n" + SHORT,
    "a space behind the size": in_chunks(SHORT, extension=b" "),
    "a space before the size": b" " + in_chunks(SHORT),
    "line feeds alone": in_chunks(SHORT).replace(b"\r\n", b"\n"),
    "a line feed in an extension": in_chunks(SHORT, extension=b";a\nb"),
    "a carriage return in an extension": in_chunks(SHORT, extension=b";a\rb"),
    "NUL in an extension": in_chunks(SHORT, extension=b";a\0b"),
    "a chunk that is longer than it says": b"5\r\nhello, \r\n0\r\n\r\n",
    "a length in the trailers": in_chunks(SHORT, trailers=b"Content-Length: 5\r\n"),
    "a coding in the trailers": in_chunks(SHORT, trailers=b"Transfer-Encoding: chunked\r\n"),
    "a trailer without a colon": in_chunks(SHORT, trailers=b"X\r\n"),
    "a folded trailer": in_chunks(SHORT, trailers=b"X: a\r\n b\r\n"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("path", [CHAT, f"{CHAT}?by=the-app"])
def test_broken_chunks_are_refused_at_once_and_nothing_behind_them_runs(edge: Edge, path: str, name: str) -> None:
    head = spelled(f"POST {path} HTTP/1.1", HOST, AUTHORIZED, JSON, CHUNKED)
    ensure_refused(exchanged(edge.port, head + BROKEN[name] + posted()), 400, "invalid_http")
    assert edge.ran() == []


ENDLESS = {
    "an extension": b"5;" + b"x" * 20 * BODY_BYTES,
    "a trailer": b"2\r\n{}\r\n0\r\nX: " + b"x" * 20 * BODY_BYTES,
    "trailers": b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 1_000_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_frames_a_body_may_not_grow_for_ever(edge: Edge, name: str) -> None:
    ensure_refused(exchanged(edge.port, chunked(ENDLESS[name])), 431, "request_headers_too_large")


def test_a_request_that_needs_no_body_may_have_one(edge: Edge) -> None:
    body = SHORT + b" " * 200_000
    request = spelled("GET /health HTTP/1.1", HOST, f"Content-Length: {len(body)}", body=body)
    answers = exchanged(edge.port, request + HEALTH.replace(b"1.1", b"1.0"))
    assert answers[0].status == 200
    assert len(answers) == 1 or answers[1].status == 200
