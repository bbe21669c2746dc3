"""What a call asks of a replica: a bound that never refuses what would fit, and a guess that may."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.demand import COMPARED_BYTES, COUNTED_CHARS, WORDS_IN_TOKEN, Demand
from corral.core.principal import ANONYMOUS, Principal

CONTEXT = 100
WORDS = "word " * (CONTEXT * WORDS_IN_TOKEN)


def demand(endpoint: Endpoint, *, body_bytes: int = 10**6, inputs: int = 1, **fields: Any) -> Demand:
    return Demand(Call(endpoint, "m", fields, inputs=inputs), ANONYMOUS, body_bytes)


def chat(*messages: tuple[str, Any], body_bytes: int = 10**6) -> Demand:
    told = [{"role": role, "content": content} for role, content in messages]
    return demand(Endpoint.CHAT, messages=told, body_bytes=body_bytes)


@pytest.mark.parametrize(
    ("asked", "fits", "likely"),
    [
        (chat(("user", WORDS)), True, False),
        (chat(("user", WORDS + "and four more words")), False, False),
        (chat(("user", WORDS), ("user", "and four more words")), False, False),
        (chat(("user", [{"type": "text", "text": WORDS + "and four more words"}])), False, False),
        (chat(("user", [{"type": "image_url", "image_url": {"url": "data:,"}}])), True, True),
        # A template may drop these.
        (chat(("system", WORDS * 2)), True, False),
        (chat(("assistant", WORDS * 2), ("user", "hi")), True, False),
        (chat(("assistant", None), ("user", "hi")), True, True),
        # Chinese has no spaces, and a long word may be one token.
        (chat(("user", "字" * 10_000)), True, False),
        (chat(("user", "hi")), True, True),
        (demand(Endpoint.COMPLETIONS, prompt=WORDS + "and four more words"), False, False),
        (demand(Endpoint.COMPLETIONS, prompt=[1] * CONTEXT), True, True),
        (demand(Endpoint.COMPLETIONS, prompt=[1] * (CONTEXT + 1)), False, False),
        # Each prompt has a slot of its own.
        (demand(Endpoint.COMPLETIONS, prompt=[WORDS, WORDS], inputs=2), True, False),
        (demand(Endpoint.COMPLETIONS, prompt=[[1] * 60, [2] * 60], inputs=2), True, True),
        (demand(Endpoint.EMBEDDINGS, input=["hi", WORDS + "and four more words"], inputs=2), False, False),
        (demand(Endpoint.EMBEDDINGS, input=["hi"] * 500, inputs=500), True, True),
    ],
)
def test_what_fits(asked: Demand, fits: bool, likely: bool) -> None:
    assert asked.may_fit(CONTEXT) is fits
    assert asked.likely_fits(CONTEXT) is likely
    assert asked.may_fit(None)
    assert asked.likely_fits(None)


def test_a_small_request_is_not_looked_at() -> None:
    broken = demand(Endpoint.CHAT, body_bytes=CONTEXT, messages=None)
    assert demand(Endpoint.CHAT, body_bytes=8 * CONTEXT, messages=None).may_fit(CONTEXT)
    assert broken.may_fit(CONTEXT)
    assert broken.likely_fits(CONTEXT)


@given(st.text(max_size=500))
def test_a_request_has_never_more_tokens_at_least_than_bytes(text: str) -> None:
    asked = chat(("user", text))
    assert asked.least_tokens() <= len(text.encode("utf-8", "surrogatepass"))


@given(st.lists(st.text("abc", min_size=1, max_size=5), max_size=100))
def test_tokens_of_four_words_are_counted_on(words: list[str]) -> None:
    assert chat(("user", " ".join(words))).least_tokens() <= len(words) / WORDS_IN_TOKEN


@given(st.lists(st.text("ab ", max_size=30), max_size=5), st.integers(1, 20))
def test_what_is_not_looked_at_would_fit(texts: list[str], context: int) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    body_bytes = len(orjson.dumps({"messages": messages}))
    asked = demand(Endpoint.CHAT, messages=messages, body_bytes=body_bytes)
    assert asked.may_fit(context) is (asked.least_tokens() <= context)
    ids = [list(range(len(text))) for text in texts]
    body_bytes = len(orjson.dumps({"prompt": ids}))
    asked = demand(Endpoint.COMPLETIONS, prompt=ids, body_bytes=body_bytes, inputs=len(ids))
    assert asked.may_fit(context) is (asked.least_tokens() <= context)


def test_of_an_endless_text_the_words_of_its_beginning_are_counted() -> None:
    words = COUNTED_CHARS // 2
    assert chat(("user", "a " * (10 * words))).least_tokens() == words // WORDS_IN_TOKEN


def test_requests_with_pictures_are_not_compared() -> None:
    assert chat(("user", "hi"), body_bytes=COMPARED_BYTES).compared
    assert not chat(("user", "hi"), body_bytes=COMPARED_BYTES + 1).compared
    assert not demand(Endpoint.EMBEDDINGS, input="hi").compared


def test_calls_stick_by_their_cache_key_else_by_their_client() -> None:
    call = Call(Endpoint.CHAT, "m", {"messages": []})
    assert Demand(call, Principal("team"), 0).sticky_key == "team"
    assert demand(Endpoint.CHAT, prompt_cache_key="talk 7").sticky_key == "talk 7"
    assert demand(Endpoint.CHAT, prompt_cache_key="").sticky_key == "anonymous"
