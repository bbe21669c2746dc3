"""Requests that come before the answers to those ahead of them, and clients that leave them behind."""

import json
import socket
import time
from typing import Any

import pytest

from support.edge import Edge
from support.matrix import CLOSED_WITHIN_S, closed_at, now
from support.raw_client import PATIENCE_S, RawClient, Reply
from support.spelled import (
    AUTHORIZED,
    HEALTH,
    HOST,
    JSON,
    POST,
    NarrowClient,
    answers_of,
    asked,
    ended,
    exchanged,
    posted,
    spelled,
)
from support.talk import CHAT, DONE, EMBEDDINGS, chat

CLOSE = "Connection: close"
# Goes on until somebody ends it.
LONG = 'script:{"count": 100000}'
WRONG = spelled(POST, HOST, "Authorization: Bearer wrong", "Content-Length: 0")
NOWHERE = spelled("GET /nowhere HTTP/1.1", HOST)
AHEAD_BYTES = 64 * 1024


def said(body: bytes) -> str:
    """The text of an answer, streamed or whole."""
    reply = Reply([b"HTTP/1.1 200 OK\r\n\r\n", body])
    chunks = reply.chunks if body.startswith(b"data: ") else [json.loads(body)]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join((choice.get("message") or choice["delta"]).get("content") or "" for choice in choices)


def echo(text: str, *headers: str, **fields: Any) -> bytes:
    """A request whose answer says this."""
    return asked("script:" + json.dumps({"text": text}), *headers, **fields)


def streaming(edge: Edge, *behind: bytes) -> RawClient:
    """A client in the middle of a stream that has no end, with requests sent behind it."""
    edge.fake.set(token_s=0.02)
    client = RawClient(edge.port)
    client.socket.sendall(b"".join((asked(LONG, stream=True, max_tokens=100_000), *behind)))
    client.receive(until=b'"content"')
    return client


# -- answers in order ------------------------------------------------------------


def mixed(count: int) -> tuple[bytes, list[int]]:
    """So many requests of all kinds, the last of which ends the connection, and the statuses of their answers."""
    kinds = [(posted(), 200), (HEALTH, 200), (asked("x", stream=True), 200), (WRONG, 401), (NOWHERE, 404)]
    chosen = [kinds[n % len(kinds)] for n in range(count - 1)] + [(posted(CLOSE), 200)]
    return b"".join(request for request, _ in chosen), [status for _, status in chosen]


@pytest.mark.parametrize("count", [2, 5, 50])
def test_answers_come_in_the_order_of_the_requests(edge: Edge, count: int) -> None:
    requests, statuses = mixed(count)
    answers = exchanged(edge.port, requests)
    assert [answer.status for answer in answers] == statuses
    assert all(answer.whole for answer in answers)
    assert [answer.closes for answer in answers] == [False] * (count - 1) + [True]


@pytest.mark.parametrize("size", [100, 333, 4096])
def test_answers_come_in_order_however_the_requests_are_cut(edge: Edge, size: int) -> None:
    requests, statuses = mixed(21)
    with RawClient(edge.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(requests), size):
            client.socket.sendall(requests[start : start + size])
        assert [answer.status for answer in ended(client)] == statuses


def test_each_answer_is_to_its_own_request(edge: Edge) -> None:
    words = [f"word{n}" for n in range(20)]
    requests = [echo(word, stream=bool(n % 2), max_tokens=8 + n) for n, word in enumerate(words)]
    answers = exchanged(edge.port, b"".join(requests) + echo("last", CLOSE))
    assert [said(answer.body).strip() for answer in answers] == [*words, "last"]


def test_a_stream_behind_a_stream_waits_for_its_end(edge: Edge) -> None:
    edge.fake.set(token_s=0.01)
    answers = exchanged(edge.port, asked("a", stream=True, max_tokens=20) + asked("b", CLOSE, stream=True))
    first, second = (Reply([b"HTTP/1.1 200 OK\r\n\r\n", answer.body]).events for answer in answers)
    assert first[-1] == second[-1] == DONE
    requests = edge.fake.requests(CHAT)
    assert requests[1]["received_at"] >= requests[0]["ended_at"]


def test_a_body_may_come_in_part_before_the_answer_ahead_of_it(edge: Edge) -> None:
    """What is kept of a request and what comes later stay in order."""
    text = " ".join(f"word{n}" for n in range(3000))
    request = asked(text, CLOSE, max_tokens=8)
    edge.fake.set(token_s=0.01)
    with RawClient(edge.port) as client:
        client.socket.sendall(asked("first", stream=True, max_tokens=40) + request[:300])
        client.receive(until=b'"content"')
        client.socket.sendall(request[300:20_000])
        client.receive(until=b"[DONE]")
        client.socket.sendall(request[20_000:])
        assert b"HTTP/1.1 200 OK" in client.receive().raw
    assert edge.ran() == ["first", text]


def test_a_body_that_came_whole_in_two_pieces_is_not_waited_for(edge: Edge) -> None:
    request = asked("second", CLOSE, max_tokens=8)
    edge.fake.set(token_s=0.01)
    with RawClient(edge.port) as client:
        client.socket.sendall(asked("first", stream=True, max_tokens=40) + request[:-20])
        client.receive(until=b'"content"')
        client.socket.sendall(request[-20:])
        assert b"HTTP/1.1 200 OK" in client.receive().raw
    assert edge.ran() == ["first", "second"]


def test_nothing_runs_behind_the_request_that_ends_the_connection(edge: Edge) -> None:
    (answer,) = exchanged(edge.port, asked("last", CLOSE) + asked("more") * 5)
    assert (answer.status, answer.closes) == (200, True)
    assert edge.ran() == ["last"]


def test_garbage_behind_a_request_ends_the_connection_after_its_answer(edge: Edge) -> None:
    (answer,) = exchanged(edge.port, asked("first", stream=True) + b"garbage\r\n\r\n" + asked("second"))
    assert (answer.status, answer.whole, answer.closes) == (200, True, True)
    assert edge.ran() == ["first"]


# -- more than may be sent ahead -------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
def test_who_sends_too_much_ahead_gets_the_answer_under_way_and_no_more(edge: Edge, apart: bool) -> None:
    more = asked("more") * (4 * AHEAD_BYTES // len(asked("more")))
    with RawClient(edge.port) as client:
        edge.fake.set(token_s=0.01)
        client.socket.sendall(asked("first", stream=True, max_tokens=30) + (b"" if apart else more))
        reply = client.receive(until=b'"content"')
        client.socket.sendall(more)
        rest = client.receive()
    reply.parts += rest.parts
    reply.end = rest.end
    (answer,) = answers_of(reply)
    assert (answer.status, answer.whole, reply.end) == (200, True, "fin")
    assert edge.ran() == ["first"]


def test_tiny_requests_ahead_do_not_pile_up(edge: Edge) -> None:
    tiny = b"GET / HTTP/1.1\r\nHost:\r\n\r\n"
    with RawClient(edge.port) as client:
        edge.fake.set(token_s=0.01)
        client.socket.sendall(asked("first", stream=True, max_tokens=30) + tiny * 10_000)
        (answer,) = answers_of(client.receive())
    assert answer.whole
    assert edge.ran() == ["first"]


def test_upgrades_ahead_do_not_pile_up(edge: Edge) -> None:
    tiny = b"GET / HTTP/1.1\r\nHost:\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with RawClient(edge.port) as client:
        client.socket.sendall(tiny * 4000)
        answers = answers_of(client.receive())
    assert 1 <= len(answers) <= 4000
    assert {answer.code for answer in answers} == {"unknown_url"}


# -- clients that leave ----------------------------------------------------------


def big_body_of(path: str) -> bytes:
    """The beginning of a request that is too large to be kept as what comes ahead is."""
    head = spelled(f"POST {path} HTTP/1.1", HOST, AUTHORIZED, JSON, "Content-Length: 500000")
    return head + b" " * 100_000


BEHIND = {
    "nothing": b"",
    "a request": asked("queued"),
    "many requests": asked("queued") * 40,
    "half a request": asked("queued")[:-10],
    "half a large body": big_body_of(CHAT),
    "half a large body for the app": big_body_of("/nowhere"),
    "garbage": b"garbage\r\n\r\n",
    "too much": asked("queued") * 2000,
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("half", [False, True])
def test_who_leaves_is_noticed_at_once_and_what_waits_never_runs(edge: Edge, name: str, half: bool) -> None:
    client = streaming(edge, BEHIND[name])
    left_at = now()
    if half:
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.close()
    assert closed_at(edge.fake, CHAT, 0) < left_at + CLOSED_WITHIN_S
    client.close()
    edge.gateway.until_idle()
    assert edge.ran() == [LONG]
    assert edge.gateway.records()[-1]["outcome"] == "client_gone"


def test_who_asks_and_shuts_his_side_at_once_has_left(edge: Edge) -> None:
    edge.fake.set(prefill_s=0.5)
    before = len(edge.gateway.records())
    with RawClient(edge.port) as client:
        client.socket.sendall(asked("hello", stream=True))
        client.socket.shutdown(socket.SHUT_WR)
        edge.gateway.until(lambda: len(edge.gateway.records()) > before, "recorded")
        assert client.receive().raw == b""
    assert edge.gateway.records()[-1]["outcome"] == "client_gone"


# -- answers that nobody reads ---------------------------------------------------


@pytest.mark.parametrize("request_", [WRONG, HEALTH], ids=["by the lane", "by the app"])
def test_answers_that_nobody_reads_do_not_pile_up(edge: Edge, request_: bytes) -> None:
    """The client is cut when it has taken nothing for its time; until then Corral's memory is for others."""
    before = edge.gateway.metric("process_resident_memory_bytes")
    with NarrowClient(edge.port) as client:
        with pytest.raises(ConnectionError):
            flood(client.socket, request_ * 5, limit_s=PATIENCE_S)
        assert edge.gateway.metric("process_resident_memory_bytes") < before + 8_000_000


def flood(to: socket.socket, data: bytes, limit_s: float) -> None:
    """Send the same again and again, never more at once than may be sent ahead, and read nothing."""
    begun = time.monotonic()
    while time.monotonic() < begun + limit_s:
        to.sendall(data)
        time.sleep(0.002)


def test_a_client_that_reads_late_gets_every_answer(edge: Edge) -> None:
    body = json.dumps({"model": "one", "input": ["word"] * 20}).encode()
    big = spelled(f"POST {EMBEDDINGS} HTTP/1.1", HOST, AUTHORIZED, JSON, f"Content-Length: {len(body)}", body=body)
    last = posted(CLOSE, body=json.dumps(chat(max_tokens=8)).encode())
    with NarrowClient(edge.port) as client:
        client.socket.sendall((big + WRONG) * 20 + last)
        statuses = [answer.status for answer in ended(client)]
    assert statuses == [200, 401] * 20 + [200]
