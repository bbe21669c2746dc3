"""What passes of a stream is remembered as text, however it passes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.transcript import KEPT_BYTES, Said, Transcript

SHARED = {"id": "chatcmpl-1", "created": 7, "model": "m", "object": "chat.completion.chunk"}


def event(choice: dict[str, Any], **more: Any) -> bytes:
    chunk = {"choices": [{"finish_reason": None, "index": 0, **choice}], **SHARED, **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    return event({"delta": fields})


def heard(*events: bytes) -> Said | None:
    transcript = Transcript()
    for each in events:
        transcript.chunk(each)
    return transcript.said()


def test_thoughts_and_words_are_kept_apart_and_the_identity_is_that_of_the_first() -> None:
    said = heard(
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(reasoning_content="m"),
        event({"delta": {"content": "Ye"}}, created=8, id="another"),
        delta(content="s"),
    )
    assert said == Said("Yes", "hmm", SHARED)


def test_what_is_null_is_no_text() -> None:
    said = heard(
        delta(role="assistant", content=None, reasoning_content=None), delta(content="a", reasoning_content=None)
    )
    assert said is not None
    assert (said.content, said.reasoning) == ("a", "")


def test_a_completions_text_is_kept() -> None:
    said = heard(event({"text": "a", "logprobs": None}), event({"text": "b", "finish_reason": "stop"}))
    assert said is not None
    assert (said.content, said.finish) == ("ab", "stop")


def test_thoughts_behind_words_cannot_be_gone_on_with() -> None:
    # A message has its thoughts before its words.
    assert heard(delta(content="a"), delta(reasoning_content="b")) is None
    said = heard(delta(content=""), delta(reasoning_content="b"), delta(content="a"), delta(reasoning_content=""))
    assert said is not None
    assert (said.content, said.reasoning) == ("a", "b")


@pytest.mark.parametrize(
    "unsound",
    [
        delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]),
        delta(content="a", annotations=[]),
        delta(content="a", reasoning_content="b"),
        event({"delta": {"content": "a"}, "logprobs": {"content": []}}),
        event({"delta": {"content": "a"}, "index": 1}),
        event({"delta": {"content": "a"}, "surprise": 1}),
        b'data: {"choices":[]}\n\n',
        b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":7}}]}\n\n',
        b"data: 7\n\n",
        b"data: {nonsense}\n\n",
    ],
)
def test_with_what_is_more_than_text_nobody_can_go_on(unsound: bytes) -> None:
    assert heard(delta(content="a"), unsound, delta(content="b")) is None


@given(st.lists(st.text(), max_size=300), st.integers(1, 100), st.sampled_from(["content", "reasoning_content"]))
def test_texts_of_chunks_alike_stand_for_those_chunks(texts: list[str], at_once: int, key: str) -> None:
    transcript = Transcript()
    transcript.chunk(delta(**{key: "first "}))
    for batch in batches(texts, at_once):
        told = [json.dumps(text).encode()[1:-1] for text in batch]
        if len(told) == 1:
            transcript.text(told[0])
        else:
            transcript.texts(told)
    transcript.chunk(delta(content="last"))
    said = transcript.said()
    assert said is not None
    assert said.text == "first " + "".join(texts) + "last"


def batches(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def test_it_can_be_asked_again_and_goes_on() -> None:
    transcript = Transcript()
    transcript.chunk(delta(content="a"))
    assert transcript.said() == transcript.said()
    transcript.chunk(delta(content="b"))
    said = transcript.said()
    assert said is not None
    assert said.content == "ab"


@pytest.mark.parametrize("alike", [True, False])
def test_a_text_without_end_is_forgotten(alike: bool) -> None:
    transcript, text = Transcript(), "x" * (KEPT_BYTES // 10)
    transcript.chunk(delta(content="a"))
    for _ in range(100):
        if alike:
            transcript.text(text.encode())
        else:
            transcript.chunk(delta(content=text))
    assert transcript.said() is None
