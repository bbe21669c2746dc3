"""Bodies that are not JSON, or more JSON than is sound."""

import orjson
import pytest

from corral.core.call import Endpoint
from corral.openai.body import CONTAINERS, CONTAINERS_READ
from corral.openai.parse import Policy, parse
from support.parsing import POLICY, refused

MESSAGES = b'"messages":[{"role":"user","content":"a"}]'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"{",
        b"{bad",
        b'{"messages":[',
        b'{"messages":[],}',
        b"{" + MESSAGES + b"}{}",
        b"{" + MESSAGES + b',"temperature":NaN}',
        b"{" + MESSAGES + b',"temperature":Infinity}',
        b"{" + MESSAGES + b',"x":1e999}',
        b"{" + MESSAGES + b',"x":' + b"9" * 400 + b"}",
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"messages":[{"role":"user","content":"\x01"}]}',
        b"\xef\xbb\xbf{" + MESSAGES + b"}",
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"," + MESSAGES + b"}",
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_not_sound_json_is_refused(body: bytes) -> None:
    error = refused(Endpoint.CHAT, body)
    assert (error.status, error.param, error.code) == (400, None, "invalid_json")


def test_the_place_of_a_syntax_error_is_told() -> None:
    message = refused(Endpoint.CHAT, b'{"a": 1,\n "b" 2}').message
    assert message.startswith("could not parse the JSON body: ")
    assert "line 2" in message


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"messages"', b"true"])
def test_json_that_is_not_an_object_is_refused(body: bytes) -> None:
    error = refused(Endpoint.EMBEDDINGS, body)
    assert (error.message, error.code) == ("the body must be a JSON object", "invalid_type")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_refused_by_the_policys_limit(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    policy = Policy(default_max_tokens=1, max_depth=10)

    def nested(levels: int) -> bytes:
        return b"{" + MESSAGES + b',"x":' + opening * levels + b"1" + closing * levels + b"}"

    error = refused(Endpoint.CHAT, nested(10), policy)
    assert (error.param, error.code) == ("x", "invalid_value")
    # The body itself is the tenth level.
    assert parse(Endpoint.CHAT, nested(9), lambda _: policy).fields["x"] == orjson.loads(nested(9))["x"]


def test_brackets_in_text_are_not_nesting() -> None:
    text = "[" * 5000 + "{" * 5000
    call = parse(Endpoint.COMPLETIONS, orjson.dumps({"prompt": text}), lambda _: POLICY)
    assert call.fields["prompt"] == text


def test_a_body_of_more_objects_than_any_conversation_is_refused() -> None:
    error = refused(Endpoint.CHAT, b"{" + MESSAGES + b',"x":[' + b"[]," * CONTAINERS + b"0]}")
    assert (error.param, error.code) == ("x", "invalid_value")


def test_many_brackets_in_text_are_not_many_objects() -> None:
    body = orjson.dumps({"prompt": "[" * (CONTAINERS + 1)})
    assert parse(Endpoint.COMPLETIONS, body, lambda _: POLICY).inputs == 1


@pytest.mark.parametrize("end", [b"0]}", b"", b'"'])
def test_a_body_of_far_too_many_objects_is_not_even_read(end: bytes) -> None:
    error = refused(Endpoint.CHAT, b"{" + MESSAGES + b',"x":[' + b"{}," * (CONTAINERS_READ + 1) + end)
    assert (error.param, error.code) == (None, "invalid_value")
    assert "objects and arrays" in error.message


def test_far_too_many_brackets_in_texts_are_read() -> None:
    text = '["\\"] {' * CONTAINERS_READ
    body = orjson.dumps({"prompt": [text, "{", text]})
    assert parse(Endpoint.COMPLETIONS, body, lambda _: POLICY).fields["prompt"] == [text, "{", text]


def test_of_a_key_given_twice_the_last_is_checked_and_sent() -> None:
    body = b'{"prompt":"a","temperature":"x","temperature":1,"id_slot":3,"id_slot":null}'
    fields = parse(Endpoint.COMPLETIONS, body, lambda _: POLICY).fields
    assert (fields["temperature"], "id_slot" in fields) == (1, False)


def test_the_policy_is_asked_for_by_the_models_name() -> None:
    policies = {"large": Policy(default_max_tokens=7), "": Policy(default_max_tokens=9)}
    named = parse(Endpoint.COMPLETIONS, b'{"prompt":"a","model":"large"}', policies.__getitem__)
    unnamed = parse(Endpoint.COMPLETIONS, b'{"prompt":"a"}', policies.__getitem__)
    assert (named.max_tokens, unnamed.max_tokens) == (7, 9)
