"""What a call can take at most."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.demand import Demand
from corral.core.errors import ContextLengthExceeded, InvalidRequest
from corral.core.limits import Limit, Rules, Scope
from corral.core.principal import Principal
from corral.core.reserve import MEDIA_TOKENS, complaints, fitted, most_prompt_tokens, most_tokens

TEAM = Principal("team_a")


def chat(content: Any, **fields: Any) -> tuple[Call, int]:
    """A call and the size of its request."""
    body = {"model": "llama", "messages": [{"role": "user", "content": content}], **fields}
    call = Call(Endpoint.CHAT, "llama", body, max_tokens=fields.get("max_tokens", 100))
    return call, len(orjson.dumps(body))


def rules(**values: Any) -> Rules:
    return Rules("team_a", "client:team_a", **values)


@given(st.lists(st.text(), max_size=5))
def test_there_are_never_more_tokens_than_bytes(texts: list[str]) -> None:
    """Byte by byte is the worst that any vocabulary does; a message has its role's name and a mark at both ends."""
    messages = [{"role": "user", "content": text} for text in texts]
    call = Call(Endpoint.CHAT, "llama", {"messages": messages})
    worst = sum(len(text.encode()) + 3 + 6 for text in texts)
    assert most_prompt_tokens(call, len(orjson.dumps(call.fields)), None) >= worst


def test_replies_are_as_long_as_they_may_be_in_each_task() -> None:
    call = Call(Endpoint.COMPLETIONS, "llama", {"prompt": ["a", "b"]}, n=3, inputs=2, max_tokens=10)
    assert most_tokens(call, 50, None) == most_prompt_tokens(call, 50, None) + 60


def test_no_tokens_are_one_and_embeddings_have_none() -> None:
    chatting, size = chat("hi", max_tokens=0)
    assert most_tokens(chatting, size, None) == most_prompt_tokens(chatting, size, None) + 1
    embedding = Call(Endpoint.EMBEDDINGS, "llama", {"input": "hi"})
    assert most_tokens(embedding, 20, None) == most_prompt_tokens(embedding, 20, None)


def test_a_prompt_is_not_longer_than_a_slot() -> None:
    call, size = chat("x" * 10_000)
    assert most_prompt_tokens(call, size, 4096) == 4096
    texts = Call(Endpoint.COMPLETIONS, "llama", {"prompt": ["x" * 10_000] * 3}, inputs=3)
    assert most_prompt_tokens(texts, 30_000, 4096) == 3 * 4096


@pytest.mark.parametrize(
    ("prompt", "inputs", "ids"),
    [([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3), (["ab", "c"], 2, None), ([[1, 2], "ab"], 2, None), ("abc", 1, None)],
)
def test_the_ids_of_tokens_are_counted(prompt: Any, inputs: int, ids: int | None) -> None:
    call = Call(Endpoint.COMPLETIONS, "llama", {"prompt": prompt}, inputs=inputs)
    assert most_prompt_tokens(call, 1000, None) == (1000 if ids is None else ids) + 8 * inputs


def test_a_picture_has_a_price_of_its_own_and_its_bytes_have_none() -> None:
    url = "data:image/png;base64," + "A" * 100_000
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    call, size = chat(parts)
    plain, plain_size = chat("what is this?")
    most = most_prompt_tokens(call, size, None)
    assert MEDIA_TOKENS < most - most_prompt_tokens(plain, plain_size, None) < MEDIA_TOKENS + 200


def test_tools_are_written_out_at_length() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call, size = chat("hi", tools=tools)
    assert most_prompt_tokens(call, size, None) > 2 * size


# -- limits that look at the request ------------------------------------------


def test_who_asks_for_more_than_may_be_is_told_so() -> None:
    call, size = chat("hi", max_tokens=200)
    found = complaints(call, rules(max_tokens=100), Demand(call, TEAM, size))
    error = found[Limit.MAX_TOKENS]
    assert isinstance(error, InvalidRequest)
    assert (error.param, error.code) == ("max_tokens", "invalid_value")
    assert error.message == "'max_tokens' is 200 and client 'team_a' may ask for at most 100"


def test_a_prompt_that_is_too_long_for_certain_is_refused() -> None:
    call, size = chat("word " * 4000, max_tokens=100)
    assert isinstance(
        complaints(call, rules(max_context=1000), Demand(call, TEAM, size))[Limit.MAX_CONTEXT], ContextLengthExceeded
    )
    assert not complaints(call, rules(max_context=1100), Demand(call, TEAM, size))


def test_a_default_is_no_wish() -> None:
    call = Call(Endpoint.CHAT, "llama", {"messages": []}, max_tokens=4096, max_tokens_given=False)
    assert not complaints(call, rules(max_tokens=100, max_context=100), Demand(call, TEAM, 50))


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        (rules(max_tokens=100), 100),
        (rules(max_tokens=100, shadow=frozenset({Limit.MAX_TOKENS})), 4096),
        (rules(max_context=1000), 1000),
        (rules(scopes=(Scope("", ((Limit.TOKENS, 1000),)),)), 1000 - 256 - 50),
        # No reply would fit: it is refused later, and told why.
        (rules(scopes=(Scope("", ((Limit.TOKENS_DAY, 100),)),)), 4096),
        (rules(scopes=(Scope("", ((Limit.REQUESTS, 10),)),)), 4096),
    ],
)
def test_a_default_becomes_what_the_limits_can_admit(limits: Rules, fits: int) -> None:
    call = Call(Endpoint.CHAT, "llama", {"max_tokens": 4096}, max_tokens=4096, max_tokens_given=False)
    fitting = fitted(call, limits, Demand(call, TEAM, 50), None)
    assert (fitting.max_tokens, fitting.fields["max_tokens"]) == (fits, fits)


def test_what_was_asked_for_stays() -> None:
    call, size = chat("hi", max_tokens=200)
    assert fitted(call, rules(max_tokens=100), Demand(call, TEAM, size), None) is call
