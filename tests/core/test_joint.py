"""The stream of the replica that goes on becomes the rest of the one that broke off."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.joint import Joint, Seam
from corral.core.transcript import Said
from corral.core.usage import Usage

FIRST = {"id": "chatcmpl-1", "created": 7, "model": "asked", "object": "chat.completion.chunk"}
SECOND = {"id": "chatcmpl-2", "created": 9, "model": "file.gguf", "object": "chat.completion.chunk"}
DONE = b"data: [DONE]\n\n"
EMPTY = "<think>\n\n</think>\n\n"


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    told = [{"finish_reason": None, "index": 0, **choice} for choice in choices]
    return b"data: " + json.dumps({"choices": told, **SECOND, **more}).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    return event({"delta": fields})


def joint(content: str = "", reasoning: str = "", tokens: int = 3, prompt: Usage | None = None) -> Joint:
    said = Said(content, reasoning, FIRST)
    return Joint(said, said, tokens, prompt or Usage())


def chunks(events: bytes) -> list[dict[str, Any]]:
    parts = events.split(b"\n\n")[:-1]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts if part != b"data: [DONE]"]


def test_what_was_said_is_not_said_again_and_the_names_are_those_of_the_first() -> None:
    made = joint("The horse")
    events = made.read(
        event({"delta": {"role": "assistant", "content": None}}, prompt_progress={"total": 9, "cache": 0})
        + delta(role="assistant", content=None)
        + delta(content="The horse is")
        + delta(content=" tall")
        + event({"delta": {}, "finish_reason": "stop"})
        + DONE
    )
    told = chunks(events)
    assert [chunk["choices"][0]["delta"] for chunk in told] == [{"content": " is"}, {"content": " tall"}, {}]
    assert told[-1]["choices"][0]["finish_reason"] == "stop"
    assert all({key: chunk[key] for key in FIRST} == FIRST for chunk in told)
    assert events.endswith(DONE)


def test_thoughts_that_were_told_are_not_told_again() -> None:
    made = joint("Ye", "hmm")
    # The line end comes from the template.
    events = made.read(delta(reasoning_content="hmm\n") + delta(content="Yes") + delta(content="!"))
    assert [chunk["choices"][0]["delta"] for chunk in chunks(events)] == [{"content": "s"}, {"content": "!"}]
    events = joint("", "hm").read(delta(reasoning_content="hmm") + delta(reasoning_content="!") + delta(content="Yes"))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(events)]
    assert deltas == [{"reasoning_content": "m"}, {"reasoning_content": "!"}, {"content": "Yes"}]


def test_what_is_repeated_with_the_progress_has_been_repeated() -> None:
    """As llama-server does when it is asked for progress (xllamacpp 2026.10): with the first of its chunks."""
    made, progress = joint("ha ha"), {"total": 9, "cache": 4, "processed": 9}
    events = made.read(
        delta(role="assistant", content=None)
        + event({"delta": {"content": "ha ha"}}, prompt_progress=progress)
        + event({"delta": {"role": "assistant", "content": None}}, prompt_progress=progress)
        + delta(content=" ha")
        + delta(content=" ha")
    )
    assert [chunk["choices"][0]["delta"] for chunk in chunks(events)] == [{"content": " ha"}, {"content": " ha"}]
    assert made.usage == Usage(9, 4, 2, estimated=True)


def test_new_thoughts_behind_words_are_told() -> None:
    made = joint("Ye", "hmm")
    events = made.read(delta(reasoning_content="hmm\n", content="Yes") + delta(reasoning_content="Or"))
    assert [chunk["choices"][0]["delta"] for chunk in chunks(events)] == [{"content": "s"}, {"reasoning_content": "Or"}]


def test_the_usage_is_that_of_both() -> None:
    told = {"prompt_tokens": 40, "completion_tokens": 5, "total_tokens": 45}
    made = joint("abc", tokens=3, prompt=Usage(37, 12))
    (chunk,) = chunks(made.read(event(usage=told | {"prompt_tokens_details": {"cached_tokens": 39}})))
    assert chunk["usage"] == {
        "prompt_tokens": 37,
        "completion_tokens": 8,
        "total_tokens": 45,
        "prompt_tokens_details": {"cached_tokens": 12},
    }
    assert made.usage == Usage(40, 39, 5)
    # Nobody has told how long the first prompt was.
    (chunk,) = chunks(joint("abc", tokens=3).read(event(usage=told)))
    assert chunk["usage"]["prompt_tokens"] == 37


def test_what_this_replica_did_is_estimated_as_long_as_it_has_not_told() -> None:
    made = joint("a")
    progress = {"total": 9, "cache": 4, "processed": 9}
    made.read(event({"delta": {}}, prompt_progress=progress) + delta(content="ab") + delta(content="c"))
    assert made.usage == Usage(9, 4, 2, estimated=True)


def test_progress_shows_that_it_is_alive_and_a_comment_does_not() -> None:
    made = joint("a")
    assert made.read(event({"delta": {}}, prompt_progress={"total": 9, "cache": 4})) == b""
    assert made.alive
    assert made.read(b": ping\n\n") == b": ping\n\n"
    assert not made.alive


@pytest.mark.parametrize(
    "odd",
    [b'data: {"error":{"code":500,"message":"no"}}\n\n', b"data: {nul}\n\n", b"data: 7\n\n", b'data: {"a":1}\n\n'],
)
def test_what_it_does_not_understand_is_left_to_the_reader(odd: bytes) -> None:
    assert joint("a").read(odd) == odd


SCALARS = st.sampled_from([0, 7, None, "", "a", 0.5, True])
TOLD = ("total", "cache", "prompt_tokens", "completion_tokens", "role", "content", "reasoning_content", "text", "index")
ODD: st.SearchStrategy[Any] = st.one_of(SCALARS, st.dictionaries(st.sampled_from(TOLD), SCALARS, max_size=3))
CHOICES = st.lists(st.dictionaries(st.sampled_from(["delta", "text", "finish_reason"]), ODD, max_size=3), max_size=2)
CHUNKS = st.fixed_dictionaries({}, optional={"choices": CHOICES | ODD, "usage": ODD, "prompt_progress": ODD, "id": ODD})


@given(st.lists(CHUNKS, max_size=6))
def test_whatever_comes_passes_or_is_mended_and_what_was_used_can_be_counted(odd: list[Any]) -> None:
    made = joint("a", "b")
    for chunk in odd:
        assert made.read(b"data: " + json.dumps(chunk).encode() + b"\n\n")[-2:] in (b"\n\n", b"")
        assert made.usage.total_tokens >= 0


def test_completions_do_not_repeat() -> None:
    made = Joint(Said("The", identity=FIRST), Said(), 1, Usage())
    events = made.read(event({"text": "The"}) + event({"text": " end", "finish_reason": "stop"}))
    assert [chunk["choices"][0]["text"] for chunk in chunks(events)] == ["The", " end"]


def test_the_blank_that_a_completion_was_not_told_is_not_said_again() -> None:
    for first, new in ((" horse", "horse"), ("horse", "horse")):
        made = Joint(Said("The ", identity=FIRST), Said(" "), 1, Usage())
        assert [chunk["choices"][0]["text"] for chunk in chunks(made.read(event({"text": first})))] == [new]


# Where the text goes on.


def read(told: str, *texts: str) -> str:
    seam = Seam(told)
    return "".join(seam.after(text) for text in texts)


@given(st.text(), st.lists(st.text()), st.data())
def test_what_is_repeated_is_cut_off_however_it_is_cut(told: str, more: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(told)), max_size=4)))
    pieces = [told[start:end] for start, end in zip([0, *cuts], [*cuts, len(told)], strict=True)]
    assert read(told, *pieces, *more) == "".join(more)


@pytest.mark.parametrize(
    ("told", "texts", "new"),
    [
        # A template that cuts blanks off, at either end.
        ("The horse ", ("The horse is",), "is"),
        ("The horse\n\n", ("The horse", " is"), "is"),
        ("\n\nThe horse", ("The horse is",), " is"),
        ("\n\nThe horse ", ("The", " horse", " is"), "is"),
        # One that does not repeat.
        ("The horse", (" is", " tall"), " is tall"),
        ("\n", ("The",), "The"),
        ("The horse", ("T", "all"), "Tall"),
        ("", ("a", "b"), "ab"),
        # Where thoughts are to come as words (reasoning_format "none"), llama.cpp repeats empty ones before them.
        ("The horse", (EMPTY + "The horse is", " tall"), " is tall"),
        ("The horse ", (EMPTY + "The horse is",), "is"),
        ("<think>", (EMPTY + "<think>\nHm",), "\nHm"),
        ("<think>\nHm", (EMPTY + "<think>\nHm, ", "so"), ", so"),
        (EMPTY + "The", (EMPTY + "The horse",), " horse"),
        (EMPTY + "The", (EMPTY + EMPTY + "The horse",), " horse"),
        (EMPTY, (EMPTY, "\n", "The"), "\nThe"),
        ("The", ("[THINK][/THINK]The horse",), " horse"),
        # It ends before all of it has been repeated: nothing is new.
        ("The horse ", ("The horse",), ""),
    ],
)
def test_where_the_text_goes_on_is_found(told: str, texts: tuple[str, ...], new: str) -> None:
    assert read(told, *texts) == new
