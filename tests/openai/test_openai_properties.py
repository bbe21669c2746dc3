"""Whatever the body is, it is either a call or an error that names a parameter."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Endpoint
from corral.core.errors import InvalidRequest
from corral.openai.parse import parse
from corral.openai.policy import OWNED, REFUSED
from corral.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from support.parsing import HELLO, POLICY, tool

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)

FIELDS = sorted(
    {
        *ChatRequest.model_fields,
        *CompletionRequest.model_fields,
        *EmbeddingRequest.model_fields,
        *OWNED,
        *REFUSED,
        *("audio", "content", "dimensions", "function_call", "functions", "modalities", "n_cmpl", "speculative.n_max"),
    }
)

# Values that are right somewhere, so that requests get past the first check.
LIKELY = st.sampled_from(
    [
        *(0, 1, 2, 5, -1, 0.5, True, False, None, "a", "auto", "none", "required", "float", [], {}, ["a"], [1, 2]),
        *([[1], "a"], HELLO, [*HELLO, {"role": "assistant", "content": "a"}], {"5": 1}, [[5, False]]),
        *([tool("f")], tool("f"), tool("g"), {"include_usage": True}, {"type": "json_object"}, {"type": "text"}),
        *([{"role": "developer", "content": [{"type": "text", "text": "a"}]}], ["text"], "http://a", {"a": "b"}),
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}],
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("f")]}},
    ]
)
BODIES = st.dictionaries(st.sampled_from(FIELDS) | TEXT, LIKELY | JSON, max_size=6)
NEEDED = st.fixed_dictionaries({"messages": st.just(HELLO), "prompt": st.just("a"), "input": st.just("a")})
REQUESTS = st.builds(lambda needed, more: needed | more, NEEDED, BODIES)
ENDPOINTS = st.sampled_from(Endpoint)


def outcome(endpoint: Endpoint, body: bytes) -> InvalidRequest | dict[str, Any]:
    """The error, sound as such, or the fields that are sent."""
    try:
        call = parse(endpoint, body, lambda _: POLICY)
    except InvalidRequest as error:
        assert_well_told(error)
        return error
    assert call.n >= 1
    assert call.inputs >= 1
    return orjson.loads(orjson.dumps(dict(call.fields)))  # type: ignore[no-any-return]  # JSON


def assert_well_told(error: InvalidRequest) -> None:
    assert error.status == 400
    assert error.message.isprintable()
    assert len(error.message) < 500
    assert error.code
    assert error.param is None or 0 < len(error.param) <= 200


def assert_fit_to_send(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    limits = set() if endpoint is Endpoint.EMBEDDINGS else {"max_tokens"}
    assert limits == fields.keys() & OWNED
    assert not fields.keys() & REFUSED
    assert not any(key.startswith("speculative") for key in fields)
    assert None not in fields.values()
    assert all(fields[key] >= 0 for key in limits)


@given(ENDPOINTS, JSON)
def test_any_json_is_a_call_or_an_error(endpoint: Endpoint, value: object) -> None:
    outcome(endpoint, orjson.dumps(value))


@given(ENDPOINTS, st.binary(max_size=64))
def test_any_bytes_are_a_call_or_an_error(endpoint: Endpoint, body: bytes) -> None:
    outcome(endpoint, body)


@given(ENDPOINTS, REQUESTS)
def test_what_is_sent_holds_nothing_refused_and_nothing_of_corrals_own(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    sent = outcome(endpoint, orjson.dumps(body))
    if not isinstance(sent, InvalidRequest):
        assert_fit_to_send(endpoint, sent)


@given(ENDPOINTS, REQUESTS)
def test_what_is_sent_would_be_accepted_and_sent_the_same_again(endpoint: Endpoint, body: dict[str, Any]) -> None:
    sent = outcome(endpoint, orjson.dumps(body))
    if not isinstance(sent, InvalidRequest):
        assert outcome(endpoint, orjson.dumps(sent)) == sent


@given(ENDPOINTS, st.sampled_from(FIELDS), JSON)
def test_one_wrong_field_is_the_one_that_is_named(endpoint: Endpoint, field: str, value: object) -> None:
    body = {"messages": HELLO, "prompt": "a", "input": "a", field: value}
    result = outcome(endpoint, orjson.dumps(body))
    if isinstance(result, InvalidRequest):
        assert (result.param or "").startswith(field)
