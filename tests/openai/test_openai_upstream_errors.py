"""What each of llama-server's error replies is taken for."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Endpoint
from corral.core.errors import (
    ContextLengthExceeded,
    CorralError,
    Unsupported,
    UpstreamFailed,
    UpstreamLoading,
    UpstreamRefused,
)
from corral.core.retry import may_retry
from corral.openai.errors import error_body, upstream_error, upstream_event_error


def reply(status: int, message: object, kind: str = "server_error", **more: Any) -> bytes:
    return orjson.dumps({"error": {"code": status, "message": message, "type": kind, **more}})


OVERFLOW = "request (9031 tokens) exceeds the available context size (2048 tokens), try increasing it"
LARGE = "input (9001 tokens) is too large to process. increase the physical batch size (current batch size: 512)"

# As seen on a real llama-server b11434, or read from its sources.
REPLIES: list[tuple[int, bytes, type[CorralError], int, str]] = [
    (400, reply(400, "Invalid tool_choice: nope", "invalid_request_error"), UpstreamRefused, 400, "invalid_request"),
    (
        400,
        reply(400, "Field 'n': Value must be between 1 <= value <= 2, but got 3"),
        UpstreamRefused,
        400,
        "invalid_value",
    ),
    (400, reply(400, OVERFLOW, "exceed_context_size_error"), ContextLengthExceeded, 400, "context_length_exceeded"),
    (500, reply(500, LARGE), ContextLengthExceeded, 400, "context_length_exceeded"),
    (
        500,
        reply(500, "input (9001 tokens) is too large to process"),
        ContextLengthExceeded,
        400,
        "context_length_exceeded",
    ),
    (500, reply(500, "Cannot use both json_schema and grammar"), UpstreamRefused, 400, "invalid_request"),
    (500, reply(500, "image input is not supported - hint: …"), UpstreamRefused, 400, "invalid_request"),
    (500, reply(500, "Failed to parse messages: Missing tool call type"), UpstreamRefused, 400, "invalid_request"),
    (500, reply(500, "Failed to parse tools: Unsupported tool type"), UpstreamRefused, 400, "invalid_request"),
    (500, reply(500, "Unknown reasoning format: bogus"), UpstreamRefused, 400, "invalid_request"),
    (500, reply(500, "Jinja Exception: Conversation roles must alternate"), UpstreamRefused, 400, "invalid_request"),
    (500, reply(500, "tools param requires --jinja flag"), Unsupported, 501, "unsupported"),
    (400, reply(400, "Pooling type 'none' is not OAI compatible"), Unsupported, 501, "unsupported"),
    (
        501,
        reply(501, "This server does not support embeddings", "not_supported_error"),
        Unsupported,
        501,
        "unsupported",
    ),
    (501, b"", Unsupported, 501, "unsupported"),
    (401, reply(401, "Invalid API Key", "authentication_error"), UpstreamFailed, 502, "upstream_failed"),
    (403, reply(403, "no", "permission_error"), UpstreamFailed, 502, "upstream_failed"),
    (404, reply(404, "File Not Found", "not_found_error"), UpstreamFailed, 502, "upstream_failed"),
    (413, b"", UpstreamRefused, 413, "invalid_request"),
    (429, b"slow down", UpstreamFailed, 502, "upstream_failed"),
    (500, reply(500, "Compute error."), UpstreamFailed, 502, "upstream_failed"),
    (500, reply(500, "Context size has been exceeded."), UpstreamFailed, 502, "upstream_failed"),
    (500, b"vector::_M_range_check", UpstreamFailed, 502, "upstream_failed"),
    (502, b"<html>Bad Gateway</html>", UpstreamFailed, 502, "upstream_failed"),
    (503, reply(503, "Loading model", "unavailable_error"), UpstreamLoading, 503, "model_loading"),
    (503, reply(503, "no slot available", "unavailable_error"), UpstreamFailed, 502, "upstream_failed"),
    (503, b"", UpstreamFailed, 502, "upstream_failed"),
    (302, b"", UpstreamFailed, 502, "upstream_failed"),
    (500, b'{"error":"broken"}', UpstreamFailed, 502, "upstream_failed"),
    (500, b'{"error":{"message":5}}', UpstreamFailed, 502, "upstream_failed"),
    (500, b"[]", UpstreamFailed, 502, "upstream_failed"),
    (500, b"\xff\xfe", UpstreamFailed, 502, "upstream_failed"),
]


@pytest.mark.parametrize(("status", "body", "kind", "ours", "code"), REPLIES, ids=lambda value: repr(value)[:60])
def test_an_error_reply_is_read_for_whose_fault_it_was(
    status: int, body: bytes, kind: type[CorralError], ours: int, code: str
) -> None:
    error = upstream_error(status, body, Endpoint.CHAT)
    assert (type(error), error.status, error.code) == (kind, ours, code)
    assert error.message
    if isinstance(error, UpstreamFailed):
        assert error.upstream_status == status


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [(Endpoint.CHAT, "messages"), (Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")],
)
def test_an_overflow_names_the_parameter_and_both_numbers(endpoint: Endpoint, param: str) -> None:
    numbers = {"n_prompt_tokens": 9031, "n_ctx": 2048}
    error = upstream_error(400, reply(400, OVERFLOW, "exceed_context_size_error", **numbers), endpoint)
    assert error.param == param
    assert error.message == (
        f"this model's maximum context length is 2048 tokens, but '{param}' has 9031 tokens; shorten it"
    )
    bare = upstream_error(400, reply(400, OVERFLOW, "exceed_context_size_error"), endpoint)
    assert (bare.param, bare.message) == (param, OVERFLOW)


def test_an_input_larger_than_a_batch_is_told_with_both_numbers() -> None:
    error = upstream_error(500, reply(500, LARGE), Endpoint.EMBEDDINGS)
    assert error.message == "an input has 9001 tokens, but the model takes at most 512 tokens at once"
    assert error.param == "input"


def test_a_field_that_llama_server_names_becomes_the_parameter() -> None:
    body = reply(400, "Field 'repeat_last_n': Value must be between 0 <= value <= 2147483647, but got -1")
    assert upstream_error(400, body, Endpoint.CHAT).param == "repeat_last_n"


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_upstream_key_is_the_operators_affair_and_is_not_shown(status: int) -> None:
    error = upstream_error(status, reply(status, "Invalid API Key: sk-secret"), Endpoint.CHAT)
    assert "sk-secret" not in error.message


def test_a_page_of_a_proxy_in_between_is_not_shown() -> None:
    error = upstream_error(502, b"<html>10.0.0.7:8081 unreachable</html>", Endpoint.CHAT)
    assert error.message == "the model server failed with status 502"


def test_who_is_told_to_come_back() -> None:
    assert upstream_error(503, reply(503, "Loading model"), Endpoint.CHAT).retry_after_s == 1.0
    assert upstream_error(429, b"", Endpoint.CHAT).retry_after_s == 1.0
    assert upstream_error(400, reply(400, "no"), Endpoint.CHAT).retry_after_s is None


@pytest.mark.parametrize("message", ["Compute error.", "Context size has been exceeded."])
def test_the_fault_of_another_request_in_the_batch_can_be_tried_again(message: str) -> None:
    assert may_retry(upstream_error(500, reply(500, message), Endpoint.CHAT))


def test_a_message_is_one_bounded_printable_line() -> None:
    message = "Failed to parse tools: " + "x\n\t\x00" * 1_000_000
    error = upstream_error(500, reply(500, message), Endpoint.CHAT)
    assert len(error.message) <= 500
    assert error.message.isprintable()
    assert error.message.startswith("Failed to parse tools: x x")


ERROR = {"code": 500, "message": "Compute error.", "type": "server_error"}


@pytest.mark.parametrize("event", [{"error": ERROR}, ERROR], ids=["event", "error"])
def test_an_error_in_a_stream_is_read_alike(event: dict[str, Any]) -> None:
    error = upstream_event_error(event, Endpoint.CHAT)
    assert isinstance(error, UpstreamFailed)
    assert (error.upstream_status, error.message) == (500, "the model server failed with status 500: Compute error.")


def test_an_overflow_in_a_stream_is_the_clients_to_put_right() -> None:
    event = {"error": {"code": 400, "message": OVERFLOW, "type": "exceed_context_size_error"}}
    assert isinstance(upstream_event_error(event, Endpoint.COMPLETIONS), ContextLengthExceeded)


@pytest.mark.parametrize("event", [{"error": "broken"}, {"error": {}}, {"error": {"code": "x"}}, "broken", None, 5, []])
def test_any_error_in_a_stream_is_an_error(event: object) -> None:
    error = upstream_event_error(event, Endpoint.CHAT)
    assert isinstance(error, UpstreamFailed)
    assert error.upstream_status == 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "type", "code", "n_ctx"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(Endpoint), st.integers(300, 599), JSON.map(orjson.dumps) | st.binary(max_size=64))
def test_any_reply_is_an_error_that_can_be_told(endpoint: Endpoint, status: int, body: bytes) -> None:
    error = upstream_error(status, body, endpoint)
    assert 400 <= error.status <= 599
    assert orjson.loads(error_body(error))["error"]["message"]


@given(st.sampled_from(Endpoint), JSON)
def test_any_event_is_an_error_that_can_be_told(endpoint: Endpoint, event: object) -> None:
    assert orjson.loads(error_body(upstream_event_error(event, endpoint)))["error"]["message"]
