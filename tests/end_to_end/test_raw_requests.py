"""HTTP as it comes: routes, methods, bodies of every length, and requests that are meant to confuse."""

import json
import socket
from typing import Any

import pytest

from support.door import lane_only
from support.fake import FakeLlama
from support.front import Front, Strict
from support.gateway import Gateway
from support.raw_client import RawClient, Reply
from support.talk import (
    CHAT,
    COMPLETIONS,
    DONE,
    EMBEDDINGS,
    chat,
    credentials,
    error_of,
    new_id,
    post,
    record_of,
    send_raw,
)

AUTHORIZED = "Authorization: Bearer local"
JSON = "Content-Type: application/json"
CLOSE = "Connection: close"
BODY = json.dumps(chat(max_tokens=8)).encode()


def send(gateway: Gateway, line: str, *headers: str, body: bytes = b"", length: int | None = None) -> Reply:
    """A request with this first line, a key, and a body of JSON."""
    declared = f"Content-Length: {len(body) if length is None else length}"
    return send_raw(gateway, line, "Host: x", AUTHORIZED, JSON, CLOSE, declared, *headers, body=body)


def chunked(body: bytes, size: int = 7) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


# -- routes and methods ----------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1",
        "GET /v1 HTTP/1.1",
        "POST /v1/responses HTTP/1.1",
        "POST /v1/chat HTTP/1.1",
        f"POST {CHAT}/ HTTP/1.1",
        f"POST /v1{CHAT} HTTP/1.1",
        f"POST /{CHAT} HTTP/1.1",
        "POST /chat/completions HTTP/1.1",
        "POST /completion HTTP/1.1",
        "GET /v1/models/ HTTP/1.1",
        "GET /health/ HTTP/1.1",
    ],
)
def test_a_route_that_does_not_exist_is_an_error_object(front: Front, line: str) -> None:
    reply = send(front.gateway, line)
    error = error_of(reply)
    assert reply.status == 404
    assert error["code"] in ("unknown_url", "model_not_found")
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        (f"GET {CHAT} HTTP/1.1", "post"),
        (f"PUT {COMPLETIONS} HTTP/1.1", "post"),
        (f"DELETE {EMBEDDINGS} HTTP/1.1", "post"),
        (f"OPTIONS {CHAT} HTTP/1.1", "post"),
        ("POST /v1/models HTTP/1.1", "get"),
        ("POST /health HTTP/1.1", "get"),
        ("DELETE /metrics HTTP/1.1", "get"),
    ],
)
def test_another_method_is_an_error_object_that_names_the_right_one(front: Front, line: str, allowed: str) -> None:
    reply = send(front.gateway, line)
    assert (reply.status, error_of(reply)["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == allowed
    assert allowed.upper() in error_of(reply)["message"]


def test_head_has_no_body(front: Front) -> None:
    reply = send(front.gateway, "HEAD /health HTTP/1.1")
    assert reply.status in (200, 405)
    assert reply.body == b""


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_a_body_of_another_type_is_refused(front: Front, content_type: str) -> None:
    reply = post(front.gateway, CHAT, chat(), **{"content-type": content_type})
    error = error_of(reply)
    assert (reply.status, error["code"]) == (415, "unsupported_media_type")
    assert "application/json" in error["message"]
    assert front.one.requests(CHAT) == []


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
def test_json_may_be_spelled_in_several_ways(front: Front, content_type: str) -> None:
    assert post(front.gateway, CHAT, chat(max_tokens=8), **{"content-type": content_type}).status == 200


def test_a_body_needs_no_type(front: Front) -> None:
    reply = send_raw(
        front.gateway, f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, CLOSE, f"Content-Length: {len(BODY)}", body=BODY
    )
    assert reply.status == 200


# -- bodies ----------------------------------------------------------------------


def test_a_request_without_a_body_is_refused(front: Front) -> None:
    reply = send_raw(front.gateway, f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, CLOSE)
    assert (reply.status, error_of(reply)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_chunked_body_is_read(front: Front, size: int) -> None:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, CLOSE, "Transfer-Encoding: chunked"]
    reply = send_raw(front.gateway, *lines, body=chunked(BODY, size))
    assert reply.status == 200
    assert front.one.requests(CHAT)[0]["body"]["messages"] == chat()["messages"]


def test_a_body_that_declares_too_much_is_refused_before_it_comes(strict: Strict) -> None:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, f"Content-Length: {2**30}"]
    reply = send_raw(strict.gateway, *lines, until=b"}}")
    assert (reply.status, error_of(reply)["code"]) == (413, "request_too_large")


def test_a_body_that_grows_too_large_is_refused(strict: Strict) -> None:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, CLOSE, "Transfer-Encoding: chunked"]
    reply = send_raw(strict.gateway, *lines, body=chunked(b" " * (strict.BODY_BYTES + 1), 1000))
    assert (reply.status, error_of(reply)["code"]) == (413, "request_too_large")


def test_a_body_of_exactly_the_limit_is_read(strict: Strict) -> None:
    body = BODY + b" " * (strict.BODY_BYTES - len(BODY))
    assert send(strict.gateway, f"POST {CHAT} HTTP/1.1", body=body).status == 200
    assert send(strict.gateway, f"POST {CHAT} HTTP/1.1", body=body + b" ").status == 413


@pytest.mark.parametrize("start", [b"", b"{"])
def test_a_body_that_does_not_come_is_given_up(strict: Strict, start: bytes) -> None:
    request_id = new_id()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, f"X-Request-Id: {request_id}", "Content-Length: 100"]
    reply = send_raw(strict.gateway, *lines, body=start, until=b"}}")
    assert (reply.status, error_of(reply)["code"]) == (408, "request_timeout")
    assert record_of(strict.gateway, request_id)["outcome"] == "refused"


def test_expect_100_continue_is_answered(front: Front) -> None:
    with RawClient(front.gateway.port) as client:
        head = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, CLOSE, f"Content-Length: {len(BODY)}"]
        client.socket.sendall("\r\n".join([*head, "Expect: 100-continue", "", ""]).encode())
        assert client.receive(until=b"\r\n\r\n").raw.startswith(b"HTTP/1.1 100 ")
        client.socket.sendall(BODY)
        assert client.receive().status == 200


def test_a_stranger_who_expects_100_continue_gets_his_401_instead(front: Front) -> None:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Length: 100000", "Expect: 100-continue"]
    assert send_raw(front.gateway, *lines, until=b"}}").status == 401


# -- connections -----------------------------------------------------------------


def test_a_connection_serves_one_request_after_another(front: Front) -> None:
    with RawClient(front.gateway.port) as client:
        for _ in range(3):
            assert client.whole("POST", CHAT, chat(max_tokens=8), **credentials("local")).status == 200
            assert client.whole("GET", "/nowhere").status == 404


def test_requests_that_come_in_one_go_are_answered_in_their_order(front: Front) -> None:
    def request(content: str, *more: str, **fields: Any) -> bytes:
        body = json.dumps(chat(content, **fields)).encode()
        head = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, f"Content-Length: {len(body)}", *more, "", ""]
        return "\r\n".join(head).encode() + body

    with RawClient(front.gateway.port) as client:
        slow, quick = request("slow", max_tokens=30, stream=True), request("quick", CLOSE, max_tokens=8)
        client.socket.sendall(slow + quick)
        reply = client.receive()
    first, _, second = reply.raw.partition(b"data: [DONE]")
    assert b"chat.completion.chunk" in first
    assert b'"chat.completion"' in second
    assert [each["body"]["messages"][0]["content"] for each in front.one.requests(CHAT)] == ["slow", "quick"]


def test_http_1_0_gets_an_answer_and_the_end_of_the_connection(front: Front) -> None:
    for request in (chat(max_tokens=8), chat(max_tokens=30, stream=True)):
        body = json.dumps(request).encode()
        lines = [f"POST {CHAT} HTTP/1.0", AUTHORIZED, JSON, f"Content-Length: {len(body)}"]
        reply = send_raw(front.gateway, *lines, body=body)
        assert (reply.status, reply.end) == (200, "fin")


def test_an_idle_connection_is_no_exchange(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.gateway.port)):
        assert front.gateway.metric("corral_exchanges_in_flight") == 0


# -- meant to confuse ------------------------------------------------------------


@lane_only
@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: -1"],
        ["Content-Length: 5x"],
        ["Content-Length: 0", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding : chunked"],
        ["X: a\rb"],
        ["no colon"],
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(front: Front, headers: list[str]) -> None:
    smuggled = f"0\r\n\r\nPOST {CHAT} HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", AUTHORIZED, JSON, *headers]
    reply = send_raw(front.gateway, *lines, body=smuggled.encode() + BODY)
    assert (reply.status, reply.end) == (400, "fin")
    assert reply.raw.count(b"HTTP/1.1 400 ") == reply.raw.count(b"content-length: ") == 1
    assert front.one.requests(CHAT) == []


@lane_only
@pytest.mark.parametrize("first_line", ["nonsense", f"POST {CHAT} HTTP/9.9", "POST", "\x16\x03\x01", " GET / HTTP/1.1"])
def test_what_is_not_http_is_refused(front: Front, first_line: str) -> None:
    reply = send_raw(front.gateway, first_line, "Host: x")
    assert (reply.status, reply.end) == (400, "fin")
    assert reply.json["error"]["code"] == "invalid_http"
    assert reply.headers["x-request-id"].startswith("req_")


@lane_only
def test_a_head_that_is_too_large_is_refused(front: Front) -> None:
    reply = send_raw(front.gateway, f"POST {CHAT} HTTP/1.1", "Host: x", *(f"X-{n}: {'y' * 1000}" for n in range(400)))
    # What it went on sending is not read any more, which TCP tells by a reset.
    assert (reply.status, reply.end in ("fin", "rst")) == (431, True)
    assert reply.json["error"]["code"] == "request_headers_too_large"


def test_an_upgrade_is_not_made(front: Front, fake: FakeLlama) -> None:
    upgrade = ["Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"]
    lines = ["GET /v1/models HTTP/1.1", "Host: x", AUTHORIZED, "Connection: Upgrade", *upgrade]
    assert send_raw(front.gateway, *lines, until=b"\r\n\r\n").status == 200
    assert fake.requests(CHAT) == []


def test_a_stream_ends_with_done_and_nothing_behind_it(front: Front) -> None:
    reply = post(front.gateway, CHAT, chat(max_tokens=30, stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["transfer-encoding"] == "chunked"
    assert reply.events[-1] == DONE
    assert reply.raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
