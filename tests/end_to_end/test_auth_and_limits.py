"""Who may come in, and how often: keys are judged at the headers, limits to the request."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime

import pytest

from support.door import lane_only
from support.front import Strict
from support.raw_client import RawClient, Reply
from support.talk import CHAT, COMPLETIONS, EMBEDDINGS, chat, completion, error_of, new_id, post, record_of, send_raw

KEY = "nameless"

# Headers that let nobody in.
STRANGERS: dict[str, list[str]] = {
    "no key": [],
    "a wrong key": ["Authorization: Bearer wrong"],
    "an empty key": ["Authorization: Bearer "],
    "another scheme": [f"Authorization: Basic {KEY}"],
    "no scheme": [f"Authorization: {KEY}"],
    "a part of a key": [f"Authorization: Bearer {KEY[:-1]}"],
    "more than a key": [f"Authorization: Bearer {KEY}x"],
    "two keys in one": [f"Authorization: Bearer {KEY} {KEY}"],
    "a key in capitals": [f"Authorization: Bearer {KEY.upper()}"],
    "the hash of a key": [f"Authorization: Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"],
    "the name of a client": ["Authorization: Bearer ann"],
    "an entry of the settings": ["Authorization: Bearer key-of-ann:ann"],
    "a wrong x-api-key": ["X-Api-Key: wrong"],
    "two headers": ["Authorization: Bearer wrong", f"Authorization: Bearer {KEY}"],
    "the same header twice": [f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"],
    "two opinions": ["Authorization: Bearer wrong", f"X-Api-Key: {KEY}"],
    "SQL": ["Authorization: Bearer ' OR '1'='1' --"],
    "more SQL": ['Authorization: Bearer "; DROP TABLE keys; --'],
    "another script": ["Authorization: Bearer clé-ключ-鍵"],
    "as much as a head may hold": ["Authorization: Bearer " + "x" * 60_000],
}
# Headers that let in.
GUESTS: dict[str, list[str]] = {
    "bearer": [f"Authorization: Bearer {KEY}"],
    "a scheme in lower case": [f"authorization: bearer {KEY}"],
    "x-api-key": [f"X-Api-Key: {KEY}"],
    "the same key twice": [f"Authorization: Bearer {KEY}", f"X-Api-Key: {KEY}"],
}
ROUTES = [
    f"POST {CHAT}",
    f"POST {COMPLETIONS}",
    f"POST {EMBEDDINGS}",
    "GET /v1/models",
    "GET /v1/models/one",
]


def knock(strict: Strict, route: str, headers: list[str]) -> Reply:
    lines = [f"{route} HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 2", *headers]
    return send_raw(strict.gateway, *lines, body=b"{}")


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_turned_away_on_every_route(strict: Strict, who: str) -> None:
    for route in ROUTES:
        reply = knock(strict, route, STRANGERS[who])
        error = error_of(reply)
        assert (reply.status, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
        assert reply.headers["www-authenticate"] == "bearer"
        assert reply.headers["x-request-id"]
    assert strict.fake.requests(CHAT) == []


@pytest.mark.parametrize("who", GUESTS)
def test_a_key_lets_in_whichever_way_it_is_given(strict: Strict, who: str) -> None:
    assert knock(strict, "GET /v1/models", GUESTS[who]).status == 200
    # The body is what is wrong now.
    assert knock(strict, f"POST {CHAT}", GUESTS[who]).status == 400


@lane_only
def test_a_header_that_no_request_may_have_is_refused(strict: Strict) -> None:
    reply = knock(strict, f"POST {CHAT}", ["Authorization: Bearer local\0"])
    assert (reply.status, error_of(reply)["code"]) == (400, "invalid_http")
    assert reply.end == "fin"
    assert strict.fake.requests(CHAT) == []


@lane_only
def test_a_key_of_a_megabyte_is_refused_with_its_head(strict: Strict) -> None:
    with RawClient(strict.gateway.port) as client:
        # Its end may be lost: the refusal does not wait for it.
        with suppress(ConnectionError):
            client.socket.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ".encode() + b"x" * 2**20)
        reply = client.receive()
    assert reply.end in ("fin", "rst")
    if reply.raw:
        assert (reply.status, error_of(reply)["code"]) == (431, "request_headers_too_large")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_a_stranger_is_turned_away_before_the_body_is_read(strict: Strict, path: str) -> None:
    request_id = new_id()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"X-Request-Id: {request_id}", f"Content-Length: {2**30}"]
    reply = send_raw(strict.gateway, *lines, until=b"}}")
    assert (reply.status, error_of(reply)["code"]) == (401, "invalid_api_key")
    record = record_of(strict.gateway, request_id)
    assert (record["status"], record["outcome"], record["client"], record["bytes_in"]) == (401, "refused", None, 0)


def test_clients_go_by_their_names(strict: Strict) -> None:
    names = {"local": "default", "key-1": "twice", "key-2": "twice", "key-of-operator": "operator", "key-of-ann": "ann"}
    for key, name in names.items():
        request_id = new_id()
        # A body that is none: nothing of a limit is used up.
        post(strict.gateway, CHAT, [], key=key, **{"x-request-id": request_id})
        assert record_of(strict.gateway, request_id)["client"] == name


def test_a_key_without_a_name_has_one_of_its_own_that_stays(strict: Strict) -> None:
    ids = [new_id(), new_id()]
    for request_id in ids:
        post(strict.gateway, CHAT, [], key=KEY, **{"x-request-id": request_id})
    first, second = (record_of(strict.gateway, each)["client"] for each in ids)
    assert first == second
    assert re.fullmatch(r"client-[0-9a-f]{8}", first)
    assert first.removeprefix("client-") not in hashlib.sha256(KEY.encode()).hexdigest()


# -- limits ----------------------------------------------------------------------


def ask(strict: Strict, key: str, *, model: str = "one", **headers: str) -> Reply:
    return post(strict.gateway, CHAT, chat(model=model, max_tokens=8), key=key, **headers)


def test_the_limit_is_exact_and_the_answers_count_it_down(strict: Strict) -> None:
    key = strict.key_of("ann")
    replies = [ask(strict, key) for _ in range(strict.LIMIT + 1)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0"]
    assert {reply.headers["x-ratelimit-limit-requests"] for reply in replies} == {"3"}
    assert all(re.fullmatch(r"[0-9.]+m?s", reply.headers["x-ratelimit-reset-requests"]) for reply in replies)
    assert len(strict.fake.requests(CHAT)) == strict.LIMIT


def test_who_is_refused_is_told_when_to_come_back(strict: Strict) -> None:
    key, request_id = strict.key_of("bob"), new_id()
    for _ in range(strict.LIMIT):
        assert ask(strict, key).status == 200
    reply = ask(strict, key, **{"x-request-id": request_id})
    error = error_of(reply)
    assert (reply.status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= strict.WINDOW_S
    assert 0 < int(reply.headers["retry-after-ms"]) <= strict.WINDOW_S * 1000
    assert "x-should-retry" not in reply.headers
    record = record_of(strict.gateway, request_id)
    assert (record["outcome"], record["client"], record["attempts"]) == ("limited", "bob", 0)


def test_refused_requests_use_up_nothing(strict: Strict) -> None:
    key, first, last = strict.key_of("cleo"), new_id(), new_id()
    ask(strict, key, **{"x-request-id": first})
    for _ in range(strict.LIMIT - 1):
        ask(strict, key)
    # Knocking all the time does not keep the door shut.
    strict.gateway.until(lambda: ask(strict, key, **{"x-request-id": last}).status == 200, "admitted again")
    gateway = strict.gateway
    gateway.until(lambda: [r for r in gateway.records() if r["request_id"] == last and r["status"] == 200], "recorded")
    admitted = next(r for r in gateway.records() if r["request_id"] == last and r["status"] == 200)
    assert began(admitted) - began(record_of(gateway, first)) >= strict.WINDOW_S - 0.05


def began(record: dict[str, object]) -> float:
    """When an exchange began, in Unix time."""
    return datetime.fromisoformat(str(record["ts"])).timestamp() - float(str(record["duration_ms"])) / 1000


def test_a_crowd_of_one_client_gets_exactly_its_limit(strict: Strict) -> None:
    key = strict.key_of("dan")
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda _: ask(strict, key).status, range(12)))
    assert sorted(statuses) == [200] * strict.LIMIT + [429] * (12 - strict.LIMIT)


def test_a_limit_is_the_clients_not_the_keys(strict: Strict) -> None:
    statuses = [ask(strict, key).status for key in ("key-1", "key-2", "key-1", "key-2")]
    assert statuses == [200, 200, 200, 429]


def test_other_clients_are_not_touched(strict: Strict) -> None:
    for _ in range(strict.LIMIT + 1):
        ask(strict, strict.key_of("eve"))
    assert ask(strict, strict.key_of("finn")).status == 200


def test_all_routes_share_the_limit_and_the_list_of_models_has_none(strict: Strict) -> None:
    key, gateway = strict.key_of("gus"), strict.gateway
    assert post(gateway, COMPLETIONS, completion(max_tokens=8), key=key).status == 200
    assert post(gateway, EMBEDDINGS, {"model": "one", "input": "x"}, key=key).status == 200
    assert post(gateway, CHAT, chat(max_tokens=30, stream=True), key=key).status == 200
    assert post(gateway, EMBEDDINGS, {"model": "one", "input": "x"}, key=key).status == 429
    listed = [gateway.get("/v1/models", headers={"x-api-key": key}).status_code for _ in range(strict.LIMIT + 1)]
    assert listed == [200] * (strict.LIMIT + 1)


def test_what_was_not_served_is_given_back(strict: Strict) -> None:
    key = strict.key_of("hal")
    refused = [ask(strict, key, model="away").status for _ in range(strict.LIMIT + 1)]
    assert refused == [503] * (strict.LIMIT + 1)
    unknown = [ask(strict, key, model="nobody").status for _ in range(strict.LIMIT + 1)]
    assert unknown == [404] * (strict.LIMIT + 1)
    assert [ask(strict, key).status for _ in range(strict.LIMIT)] == [200] * strict.LIMIT


def test_nothing_that_a_request_says_makes_it_another_client(strict: Strict) -> None:
    key, statuses = strict.key_of("ida"), []
    for i in range(strict.LIMIT + 1):
        body = chat(max_tokens=8, user=f"user-{i}", metadata={"client": f"client-{i}"}, safety_identifier=f"{i}")
        headers = {"x-forwarded-for": f"10.0.0.{i}", "x-client": f"{i}", "openai-organization": f"org-{i}"}
        statuses.append(post(strict.gateway, CHAT, body, key=key, **headers).status)
    assert statuses == [200] * strict.LIMIT + [429]
