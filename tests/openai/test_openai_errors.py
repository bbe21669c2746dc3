"""How errors look on the wire."""

import json

import pytest
from openai.types import ErrorObject

from corral.core.errors import (
    ContextLengthExceeded,
    CorralError,
    InvalidRequest,
    QueueFull,
    RateLimited,
    Unauthorized,
    Unsupported,
    UpstreamTimeout,
)
from corral.openai.errors import error_body, error_event, error_headers
from corral.openai.replies import ErrorReply

ERRORS: list[tuple[CorralError, dict[str, str | None]]] = [
    (
        InvalidRequest("'n' must be 1 or more", param="n", code="invalid_value"),
        {
            "message": "'n' must be 1 or more",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_value",
        },
    ),
    (
        Unauthorized("no such key"),
        {"message": "no such key", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"},
    ),
    (
        ContextLengthExceeded("too long", param="messages"),
        {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        },
    ),
    (
        QueueFull('"full"\n'),
        {"message": '"full"\n', "type": "server_error", "param": None, "code": "queue_full"},
    ),
]


@pytest.mark.parametrize(("error", "fields"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_has_all_four_keys(error: CorralError, fields: dict[str, str | None]) -> None:
    body = json.loads(error_body(error))
    assert body == {"error": fields}
    ErrorReply.model_validate(body)
    ErrorObject.model_validate(body["error"])


def test_an_error_in_a_stream_is_one_event() -> None:
    error = QueueFull("full\n\nreally")
    event = error_event(error)
    assert event == b"data: " + error_body(error) + b"\n\n"
    assert event.count(b"\n") == 2


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "milliseconds"),
    [(0.0, b"1", b"1"), (0.0001, b"1", b"1"), (0.25, b"1", b"250"), (1.0, b"1", b"1000"), (1.2, b"2", b"1200")],
)
def test_a_client_is_told_when_to_come_back(retry_after_s: float, seconds: bytes, milliseconds: bytes) -> None:
    headers = error_headers(QueueFull("full", retry_after_s=retry_after_s))
    assert headers == [(b"retry-after", seconds), (b"retry-after-ms", milliseconds)]


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (QueueFull("full"), []),
        (InvalidRequest("no"), []),
        (Unauthorized("who"), [(b"www-authenticate", b"Bearer")]),
        (Unsupported("no embeddings"), [(b"x-should-retry", b"false")]),
        (UpstreamTimeout("total", 60), [(b"x-should-retry", b"false")]),
        (UpstreamTimeout("connect", 5), []),
        (
            RateLimited("slow", headers=((b"x-ratelimit-limit-requests", b"5"),)),
            [(b"x-ratelimit-limit-requests", b"5")],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_headers_say_what_a_client_can_do(error: CorralError, headers: list[tuple[bytes, bytes]]) -> None:
    assert error_headers(error) == headers
