"""Pages of other origins: those on the list may read every answer, all others none."""

import pytest

from support.front import Front, Strict
from support.raw_client import Reply
from support.talk import CHAT, DONE, chat, post, send_raw

STRANGER = "https://evil.example.org"
EXPOSED = {
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-remaining-tokens",
    "x-corral-limit",
}


def preflight(strict: Strict, origin: str, path: str = CHAT) -> Reply:
    asked = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type"]
    lines = [f"OPTIONS {path} HTTP/1.1", "Host: x", "Connection: close", f"Origin: {origin}", *asked]
    return send_raw(strict.gateway, *lines)


def assert_readable(reply: Reply, origin: str) -> None:
    assert reply.headers["access-control-allow-origin"] == origin
    assert {name.strip() for name in reply.headers["access-control-expose-headers"].split(",")} >= EXPOSED
    assert "origin" in reply.headers["vary"]


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere"])
def test_a_preflight_of_a_listed_origin_is_granted_without_a_key(strict: Strict, path: str) -> None:
    reply = preflight(strict, strict.ORIGIN, path)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == strict.ORIGIN
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert "post" in reply.headers["access-control-allow-methods"]
    assert reply.headers["x-request-id"]


def test_a_preflight_of_another_origin_is_not_granted(strict: Strict) -> None:
    reply = preflight(strict, STRANGER)
    assert reply.status == 400
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["x-request-id"]


def test_pages_of_a_listed_origin_can_read_answers_and_streams(strict: Strict) -> None:
    models = send_raw(
        strict.gateway,
        *["GET /v1/models HTTP/1.1", "Host: x", "Connection: close", "X-Api-Key: local", f"Origin: {strict.ORIGIN}"],
    )
    assert models.status == 200
    assert_readable(models, strict.ORIGIN)
    stream = post(strict.gateway, CHAT, chat(max_tokens=30, stream=True), origin=strict.ORIGIN)
    assert stream.events[-1] == DONE
    assert_readable(stream, strict.ORIGIN)


# A request that ends so: its status, path, body, key and further headers.
ERRORS: dict[int, tuple[str, object, str, dict[str, str]]] = {
    400: (CHAT, [], "nameless", {}),
    401: (CHAT, chat(), "wrong", {}),
    404: ("/nowhere", {}, "nameless", {}),
    405: ("/v1/models", {}, "nameless", {}),
    413: (CHAT, chat("x" * Strict.BODY_BYTES), "nameless", {}),
    415: (CHAT, chat(), "nameless", {"content-type": "text/plain"}),
    503: (CHAT, chat(model="away"), "nameless", {}),
}


@pytest.mark.parametrize("status", ERRORS)
def test_pages_of_a_listed_origin_can_read_errors_and_others_cannot(strict: Strict, status: int) -> None:
    path, body, key, headers = ERRORS[status]
    reply = post(strict.gateway, path, body, key=key, origin=strict.ORIGIN, **headers)
    assert reply.status == status
    assert_readable(reply, strict.ORIGIN)
    foreign = post(strict.gateway, path, body, key=key, origin=STRANGER, **headers)
    assert foreign.status == status
    assert "access-control-allow-origin" not in foreign.headers


def test_without_a_list_no_page_can_read_anything(front: Front) -> None:
    """The headers of llama-server, which lets in every origin, are not passed on either."""
    for fields in ({"max_tokens": 8}, {"max_tokens": 30}):
        for stream in (False, True):
            body = chat(stream=stream) | fields
            reply = post(front.gateway, CHAT, body, origin=STRANGER)
            assert reply.status == 200
            assert not [name for name in reply.headers if name.startswith("access-control-")]
