"""The holes that systems like this one had, row by row of the threat list: on the wire where Corral could have them."""

import gzip
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.front import Front, Strict
from support.gateway import Gateway
from support.raw_client import RawClient, Reply
from support.talk import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    begin,
    chat,
    completion,
    error_of,
    new_id,
    post,
    record_of,
    send_raw,
)

# -- 2: the Host header and the target -------------------------------------------


@pytest.mark.parametrize("host", ["x/", "x?", "x#", "x/health", "x/health?", "x@health", "", "[::1", "x:99999"])
@pytest.mark.parametrize("line", [f"POST {CHAT}", "GET /v1/models"])
def test_row_2_a_host_header_opens_no_door(front: Front, line: str, host: str) -> None:
    reply = send_raw(front.gateway, f"{line} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Length: 0")
    assert reply.status in (400, 401)


@pytest.mark.parametrize(
    "target",
    [
        "http://x/v1/models",
        "http://x/health/../v1/models",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/health/..%2fv1/models",
        "//v1/models",
        "/v1//models",
        "/v1/models%00",
        "/v1/models;/health",
        "/v1/models?/health",
        "/v1/models#/health",
        "/V1/MODELS",
        "/health%2f..%2fv1/models",
        "*",
    ],
)
def test_row_2_no_spelling_of_a_path_gets_past_the_key(front: Front, target: str) -> None:
    reply = send_raw(front.gateway, f"GET {target} HTTP/1.1", "Host: x", "Host: y", "Connection: close")
    assert reply.status in (400, 401, 404)
    assert b'"owned_by"' not in reply.raw


# -- 3 to 5, 15: routes that others have (test_roles.py has every route and every role) ---


@pytest.mark.parametrize("key", ["key-of-ann", "key-of-operator"])
@pytest.mark.parametrize(
    "path",
    [
        "/admin", "/config/update", "/key/generate", "/user/new", "/login", "/logout", "/sso/login", "/ui",
        "/dashboard", "/console", "/mcp/test", "/mcp-rest/test/connection", "/prompts/test", "/tools", "/cors-proxy",
        "/slots", "/props", "/lora-adapters", "/models/load", "/v1/stream", "/apply-template", "/tokenize"
    ],
)  # fmt: skip
def test_rows_3_to_5_and_15_there_are_no_such_routes(front: Front, path: str, key: str) -> None:
    for method in ("GET", "POST"):
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Connection: close"]
        reply = send_raw(front.gateway, *lines, "Content-Length: 0")
        assert reply.status == 404
        assert "set-cookie" not in reply.headers
    # Corral itself asks its llama-servers for their /props.
    assert not [request for request in front.one.requests(path) if "x-request-id" in request["headers"]]


# -- 5, 6, 15: keys --------------------------------------------------------------


def test_rows_5_and_15_a_key_that_begins_like_another_is_unknown_like_any(front: Front) -> None:
    answers = {post(front.gateway, CHAT, chat(), key=key).body for key in ("key-of-ann-x", "key-of-an", "zzz")}
    assert len(answers) == 1


# -- 7: where requests go --------------------------------------------------------


def test_row_7_nothing_in_a_request_chooses_where_it_goes(front: Front) -> None:
    evil = dict.fromkeys(("api_base", "base_url", "api_url", "upstream", "proxy", "endpoint"), "http://127.0.0.1:1")
    headers = {"x-portkey-custom-host": "http://127.0.0.1:1", "x-upstream": "http://127.0.0.1:1", "cookie": "a=b"}
    reply = post(front.gateway, CHAT, chat(max_tokens=8, **evil), **headers)
    assert reply.status == 200
    assert len(front.one.requests(CHAT)) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_row_7_redirects_are_not_followed(front: Front, status: int) -> None:
    front.one.fault("status", status=status)
    reply = post(front.gateway, CHAT, chat(max_tokens=8))
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_failed")
    assert len(front.one.requests()) - len(front.one.requests("/health")) <= 2


def test_row_7_of_the_headers_of_a_client_only_the_id_goes_upstream(front: Front) -> None:
    given = {"cookie": "a=b", "x-conversation-id": "c", "origin": "https://x.example", "x-forwarded-for": "10.0.0.1"}
    post(front.gateway, CHAT, chat(max_tokens=30), **given, **{"x-request-id": "the-id"})
    (request,) = front.one.requests(CHAT)
    assert set(request["headers"]) == {
        "host",
        "connection",
        "content-type",
        "content-length",
        "accept",
        "x-request-id",
    }


# -- 9: work that is out of proportion -------------------------------------------

BOMBS: dict[str, Callable[[], bytes]] = {
    "fields": lambda: json.dumps({f"f{i}": i for i in range(50_000)}).encode(),
    "arrays": lambda: b'{"messages":[' + b"[]," * 5_000_000 + b"[]]}",
    "objects in objects": lambda: b'{"x":' * 900 + b"1" + b"}" * 900,
    "a number of a megabyte": lambda: b'{"max_tokens":' + b"9" * 1_000_000 + b"}",
    "biases": lambda: json.dumps(chat(logit_bias={str(i): 1 for i in range(100_000)})).encode(),
    "stops": lambda: json.dumps(chat(stop=["x" * 10] * 100_000)).encode(),
    "n": lambda: json.dumps(chat(n=10**9)).encode(),
    "inputs": lambda: json.dumps({"model": "one", "messages": [], "input": ["x"] * 300_000}).encode(),
    "zip": lambda: gzip.compress(b" " * 10_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_row_9_bombs_are_refused_and_the_next_is_served(front: Front, name: str) -> None:
    body = BOMBS[name]()
    with RawClient(front.gateway.port) as client:
        head = [f"POST {CHAT} HTTP/1.1", "Host: x", "Authorization: Bearer local", f"Content-Length: {len(body)}"]
        client.socket.sendall(
            "\r\n".join([*head, "Content-Encoding: gzip", "Connection: close", "", ""]).encode() + body
        )
        assert client.receive().status == 400
    assert front.one.requests(CHAT) == []
    assert post(front.gateway, CHAT, chat(max_tokens=8)).status == 200


@pytest.mark.parametrize(
    "header", ["Range: bytes=" + "0-0," * 5000 + "0-0", "Cookie: " + "a=b;" * 50_000, "X: " + "y" * 500_000]
)
def test_row_9_headers_are_no_bombs(front: Front, header: str) -> None:
    lines = ["GET /v1/models HTTP/1.1", "Host: x", "Authorization: Bearer local", "Connection: close", header]
    assert send_raw(front.gateway, *lines).status in (200, 400, 431)


# -- 10: nothing grows for ever --------------------------------------------------


def test_row_10_memory_does_not_grow_with_what_clients_make_up(gateway: Gateway) -> None:
    def trouble(i: int) -> None:
        unique = f"{i}-" + "x" * 5000
        post(gateway, CHAT, chat(unique, max_tokens=1), key="key-of-bob")
        post(gateway, CHAT, chat(model=unique[:200]), key="key-of-bob")
        post(gateway, CHAT, chat(), key=unique)

    for i in range(20):
        trouble(i)
    before = gateway.metric("process_resident_memory_bytes")
    for i in range(20, 220):
        trouble(i)
    # Kept, what these sent would be three megabytes, and several times that as Python objects.
    assert gateway.metric("process_resident_memory_bytes") - before < 3_000_000


# -- 11: usage is recorded on every way ------------------------------------------

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat(max_tokens=30)),
    "short chat": (CHAT, chat(max_tokens=8)),
    "streamed chat": (CHAT, chat(max_tokens=30, stream=True)),
    "completion": (COMPLETIONS, completion(max_tokens=30)),
    "streamed completion": (COMPLETIONS, completion(max_tokens=30, stream=True)),
    "prompts": (COMPLETIONS, completion(["a b", "c d", "e f"], max_tokens=30)),
    "embedding": (EMBEDDINGS, {"model": "one", "input": "once upon a time"}),
    "embeddings": (EMBEDDINGS, {"model": "one", "input": ["a b", "c d", "e f", "g h", "i j"]}),
}


@pytest.mark.parametrize("name", WAYS)
def test_row_11_usage_is_recorded_on_every_way(gateway: Gateway, name: str) -> None:
    path, body = WAYS[name]
    request_id = new_id()
    before = gateway.metric("corral_tokens_total", client="ann")
    assert post(gateway, path, body, key="key-of-ann", **{"x-request-id": request_id}).status == 200
    record = record_of(gateway, request_id)
    assert record["prompt_tokens"] > 0
    assert (record["completion_tokens"] > 0) is (path != EMBEDDINGS)
    assert not record["estimated"]
    counted = record["prompt_tokens"] + record["cached_tokens"] + record["completion_tokens"]
    assert gateway.metric("corral_tokens_total", client="ann") == before + counted


# -- 12: nothing leaks -----------------------------------------------------------


def test_row_12_after_any_mix_of_faults_everything_is_given_back(front: Front) -> None:
    """What the fixture asserts afterwards: no slot busy, nobody waiting, one record for each exchange."""
    dice = random.Random(7)
    kinds = ["rst", "fin", "error_event", "malformed", "no_done", "status", "reset", "head_cut", "wrong_type", "crlf"]
    for fake in front.fakes:
        fake.set(token_s=0.005)
        for _ in range(20):
            fake.fault(dice.choice(kinds), times=1, skip=dice.randrange(12), after=dice.randrange(20))
    plans = [(dice.choice(["one", "two"]), dice.random() < 0.5, dice.random() < 0.3) for _ in range(60)]

    def ask(plan: tuple[str, bool, bool]) -> int:
        model, stream, leaves = plan
        client = begin(front.gateway, CHAT, chat(model=model, max_tokens=30, stream=stream))
        reply = Reply() if leaves else client.receive()
        client.close()
        return 499 if leaves else reply.status

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(ask, plans)) <= {200, 499, 502}


# -- 13: a client's mistakes are not the upstream's ------------------------------


@pytest.mark.parametrize("status", [400, 422, 500, 501])
def test_row_13_no_number_of_refusals_takes_a_replica_out(front: Front, status: int) -> None:
    transitions = front.gateway.metric("corral_replica_transitions_total", model="one")
    front.one.fault("status", status=status, times=10)
    answered = {post(front.gateway, CHAT, chat(max_tokens=8)).status for _ in range(10)}
    assert answered == {502 if status == 500 else status}
    assert post(front.gateway, CHAT, chat(max_tokens=8)).status == 200
    assert front.gateway.metric("corral_replica_transitions_total", model="one") == transitions


# -- 14: what is shown is data ---------------------------------------------------


def test_row_14_names_are_never_markup(strict: Strict) -> None:
    markup = "<script>alert(1)</script>"
    replies = [
        post(strict.gateway, CHAT, chat(model=markup), key="nameless"),
        send_raw(strict.gateway, f"GET /{markup} HTTP/1.1", "Host: x", "Connection: close"),
        send_raw(
            strict.gateway, f"GET /v1/models/{markup} HTTP/1.1", "Host: x", "X-Api-Key: nameless", "Connection: close"
        ),
    ]
    for reply in replies:
        assert reply.status == 404
        assert reply.headers["content-type"] == "application/json"
