"""A stream comes out as llama-server would have sent it to the client; what Corral asked for is taken out."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.errors import BadReply, ContextLengthExceeded, UpstreamFailed
from corral.core.usage import Usage
from corral.pipeline.stream import StreamReader
from support.samples import SAMPLES, Sample, chunks_of, events_of, sample, without_chance

DONE = b"data: [DONE]\n\n"
TIMINGS = {"cache_n": 0, "prompt_n": 7, "predicted_n": 3}


def chat(**more: Any) -> Call:
    return replace(Call(Endpoint.CHAT, model="", fields={}, stream=True), **more)


def event(**chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str, *, model: str = "smol", index: int = 0) -> bytes:
    choice = {"finish_reason": None, "index": index, "delta": {"content": text}}
    return event(choices=[choice], id="x", model=model)


def finish(**more: object) -> bytes:
    return event(choices=[{"finish_reason": "stop", "index": 0, "delta": {}}], id="x", model="smol", **more)


def usage_chunk(completion: int, prompt: int = 7, **more: object) -> bytes:
    usage = {"completion_tokens": completion, "prompt_tokens": prompt, "total_tokens": prompt + completion}
    return event(choices=[], id="x", model="smol", usage=usage, **more)


def progress(processed: int) -> bytes:
    choice = {"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}
    told = {"total": 7, "cache": 2, "processed": processed, "time_ms": 1}
    return event(choices=[choice], id="x", model="smol", prompt_progress=told)


SOUND = progress(2) + progress(7) + delta("a") + delta("b") + finish() + usage_chunk(3, timings=TIMINGS) + DONE


def read(call: Call, *pieces: bytes) -> tuple[StreamReader, list[bytes]]:
    reader = StreamReader(call)
    return reader, [passed for piece in pieces for passed in events_of(reader.read(piece))]


def names(samples: list[Sample]) -> list[str]:
    return [each.name for each in samples]


# What llama-server sends.


@pytest.mark.parametrize("each", SAMPLES, ids=names(SAMPLES))
def test_a_client_gets_what_llama_server_would_have_streamed_to_it(each: Sample) -> None:
    reader, passed = read(each.call(), each.asked)
    assert reader.done
    plain = [event for event in events_of(each.plain) if event != b"data: null\n\n"]
    assert [without_chance(event) for event in passed] == [_without_usage(event) for event in plain]


def _without_usage(event: bytes) -> bytes:
    """A completion's finish chunk tells the usage of one choice also to who did not ask for it."""
    if b'"usage":' not in event:
        return without_chance(event)
    chunk = json.loads(event[6:])
    del chunk["usage"]
    return without_chance(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


@pytest.mark.parametrize("each", SAMPLES, ids=names(SAMPLES))
def test_a_client_that_asks_for_usage_gets_it_once_and_last(each: Sample) -> None:
    _, passed = read(each.call(include_usage=True), each.asked)
    told = [chunk for chunk in chunks_of(passed) if "usage" in chunk]
    assert [chunk["choices"] for chunk in told] == [[]]
    assert chunks_of(passed)[-1] == told[0]
    assert passed[-1] == DONE
    one = each.whole["usage"]
    # llama-server counts the first choice of the first prompt only.
    assert told[0]["usage"]["completion_tokens"] >= one["completion_tokens"] + each.n * each.inputs - 1
    assert told[0]["usage"]["prompt_tokens"] == one["prompt_tokens"] * each.inputs


@pytest.mark.parametrize("each", SAMPLES, ids=names(SAMPLES))
def test_the_usage_is_counted_whether_it_is_shown_or_not(each: Sample) -> None:
    hidden, _ = read(each.call(), each.asked)
    shown, passed = read(each.call(include_usage=True), each.asked)
    assert hidden.usage() == shown.usage()
    assert not hidden.usage().estimated
    assert shown.usage().total_tokens == chunks_of(passed)[-1]["usage"]["total_tokens"]


@pytest.mark.parametrize("each", SAMPLES, ids=names(SAMPLES))
def test_the_model_has_the_name_that_was_asked_for_in_every_chunk(each: Sample) -> None:
    call = each.call(model='my "model"/ü', include_usage=True, include_progress=True)
    _, passed = read(call, each.asked)
    assert {chunk["model"] for chunk in chunks_of(passed)} == {'my "model"/ü'}


@given(st.sampled_from(SAMPLES), st.booleans(), st.booleans(), st.data())
def test_any_cut_of_the_stream_gives_the_same(each: Sample, usage: bool, told: bool, data: st.DataObject) -> None:
    call = each.call(model="m", include_usage=usage, include_progress=told)
    whole, passed = read(call, each.asked)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(each.asked)), max_size=8)))
    pieces = [each.asked[start:end] for start, end in zip([0, *cuts], [*cuts, len(each.asked)], strict=True)]
    cut, passed_in_pieces = read(call, *pieces)
    assert passed_in_pieces == passed
    assert cut.usage() == whole.usage()
    assert cut.token_events == whole.token_events


@pytest.mark.parametrize("name", ["two choices", "two prompts", "a tool call"])
def test_a_stream_that_comes_byte_by_byte_gives_the_same(name: str) -> None:
    each = sample(name)
    _, passed = read(each.call(), each.asked)
    _, trickled = read(each.call(), *(each.asked[at : at + 1] for at in range(len(each.asked))))
    assert trickled == passed


def test_lines_may_end_in_crlf() -> None:
    _, passed = read(chat(), SOUND)
    _, same = read(chat(), SOUND.replace(b"\n", b"\r\n"))
    assert same == passed


# What is dropped, and what is moved.


def test_progress_that_nobody_asked_for_is_dropped() -> None:
    reader, passed = read(chat(), progress(2) + progress(7) + delta("a"))
    assert passed == [delta("a")]
    assert reader.token_events == 1


def test_progress_is_passed_on_to_who_asked_and_is_no_token() -> None:
    reader, passed = read(chat(include_progress=True), progress(2))
    assert passed == [progress(2)]
    assert reader.token_events == 0


def test_a_null_event_is_dropped() -> None:
    _, passed = read(chat(), b"data: null\n\n" + delta("a"))
    assert passed == [delta("a")]


def test_comments_and_other_fields_are_dropped() -> None:
    reader, passed = read(chat(), b":\n\n: ping\n\nevent: x\n\nid: 1\n\nretry: 5\n\n" + delta("a"))
    assert passed == [delta("a")]
    assert reader.failure is None


def test_timings_stand_on_the_finish_chunk_of_who_did_not_ask_for_usage() -> None:
    _, passed = read(chat(), SOUND)
    *_, last, done = passed
    assert chunks_of([last])[0]["timings"] == TIMINGS
    assert chunks_of([last])[0]["choices"][0]["finish_reason"] == "stop"
    assert done == DONE


def test_timings_stay_on_the_usage_chunk_of_who_asked_for_it() -> None:
    _, passed = read(chat(include_usage=True), SOUND)
    finished, usage = chunks_of(passed)[-2:]
    assert "timings" not in finished
    assert usage["timings"] == TIMINGS


def test_the_finish_chunk_waits_for_its_timings() -> None:
    reader = StreamReader(chat())
    assert reader.read(delta("a") + finish()) == delta("a")
    assert reader.read(usage_chunk(1, timings=TIMINGS)) == finish(timings=TIMINGS)


@pytest.mark.parametrize("rest", [DONE, finish() + DONE, b"data: nonsense\n\n"])
def test_a_finish_chunk_without_a_usage_chunk_is_not_lost(rest: bytes) -> None:
    _, passed = read(chat(), delta("a") + finish(), rest)
    assert passed[1] == finish()


def test_what_follows_done_is_left_alone() -> None:
    reader, passed = read(chat(), delta("a") + DONE + delta("b") + b"nonsense\n\n")
    assert passed == [delta("a"), DONE]
    assert reader.done
    assert reader.failure is None


def test_a_name_is_changed_where_it_is_the_models_and_nowhere_else() -> None:
    said = delta('say "model":"smol" twice', model="smol")
    _, passed = read(chat(model="mine"), said)
    (chunk,) = chunks_of(passed)
    assert chunk["model"] == "mine"
    assert chunk["choices"][0]["delta"]["content"] == 'say "model":"smol" twice'


def test_words_of_the_protocol_within_a_text_mean_nothing() -> None:
    text = '{"usage":1,"prompt_progress":2,"error":{"message":"x"},"finish_reason":"stop"} [DONE]'
    reader, passed = read(chat(), delta(text))
    assert passed == [delta(text)]
    assert (reader.failure, reader.done, reader.token_events) == (None, False, 1)


# How it ends.


def test_usage_of_a_cut_stream_is_an_estimate_from_what_came() -> None:
    reader, _ = read(chat(), progress(2) + delta("a") + delta("b"))
    assert reader.usage() == Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=2, estimated=True)


def test_usage_is_an_estimate_until_each_choice_has_told_its_own() -> None:
    reader, _ = read(chat(n=2), delta("a", index=0) + delta("b", index=1) + usage_chunk(1))
    assert reader.usage().estimated
    reader.read(usage_chunk(4))
    assert reader.usage() == Usage(prompt_tokens=7, completion_tokens=5)


def test_usage_that_llama_server_does_not_tell_is_an_estimate() -> None:
    reader, passed = read(chat(include_usage=True), delta("a") + finish() + DONE)
    assert reader.usage() == Usage(completion_tokens=2, estimated=True)
    assert passed[-1] == DONE


def test_an_error_event_ends_the_stream_with_what_it_means() -> None:
    error = {"code": 500, "message": "Compute error.", "type": "server_error"}
    reader, passed = read(chat(), delta("a") + event(error=error) + delta("b") + DONE)
    assert passed == [delta("a")]
    assert isinstance(reader.failure, UpstreamFailed)
    assert "Compute error" in reader.failure.message
    assert not reader.done


def test_a_clients_mistake_within_the_stream_is_the_clients() -> None:
    error = {"code": 400, "message": "x", "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}
    reader, _ = read(chat(), event(error=error))
    assert isinstance(reader.failure, ContextLengthExceeded)


@pytest.mark.parametrize("said", [{"content": "Well, "}, {"reasoning_content": "Hm"}])
def test_what_is_repeated_of_a_message_with_the_progress_is_kept(said: dict[str, str]) -> None:
    """As llama-server does for a client with ``echo`` (xllamacpp 2026.10)."""
    told = {"choices": [{"finish_reason": None, "index": 0, "delta": said}], "id": "x", "model": "smol"}
    _, passed = read(chat(), event(**told, prompt_progress={"total": 7, "cache": 2}) + delta("a"))
    assert passed == [event(**told), delta("a")]


def test_an_error_that_is_null_is_none() -> None:
    harmless = event(choices=[], id="x", model="smol", error=None)
    reader, passed = read(chat(), harmless + delta("a"))
    assert reader.failure is None
    assert passed[-1] == delta("a")


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\n\n",
        b"data: nonsense\n\n",
        b'data: {"choices":[{"finish_reason":nul\n\n',
        b"data: 5\n\n",
        b"data: []\n\n",
        b"data:\n\n",
        b'data: {"usage":{"prompt_tokens":"many"},"choices":[]}\n\n',
        b'data: {"usage":{}}\n\n',
        b'data: {"prompt_progress":5}\n\n',
        b'data: {"prompt_progress":{"total":5}}\n\n',
        b'data: {"prompt_progress":{"total":null,"cache":0}}\n\n',
        b'data: {"prompt_progress":{"total":5,"cache":"none"}}\n\n',
        b'data: {"usage":{"completion_tokens":0.5},"choices":[]}\n\n',
        b'data: {"error":}\n\n',
        b"<html>\n\n",
    ],
)
def test_a_malformed_event_is_a_bad_reply(bad: bytes) -> None:
    reader, passed = read(chat(), delta("a") + bad + delta("b") + DONE)
    assert passed == [delta("a")]
    assert isinstance(reader.failure, BadReply)


def test_an_event_without_end_is_a_bad_reply() -> None:
    reader = StreamReader(chat())
    reader.read(delta("a"))
    for _ in range(17):
        reader.read(b"x" * 1024 * 1024)
    assert isinstance(reader.failure, BadReply)


# Garbage of the kinds that a broken server sends.
garbage = st.lists(
    st.one_of(
        st.sampled_from([SOUND, DONE, delta("a"), finish(), usage_chunk(1), progress(1), b"data: null\n\n", b"\n\n"]),
        st.sampled_from([b"data: {", b'data: {"usage":', b'{"error":', b"}\n\n", b'"prompt_progress":', b"[1]\n\n"]),
        st.binary(max_size=8),
    ),
    max_size=12,
)


@given(garbage, st.booleans())
def test_whatever_comes_is_read_or_refused_and_never_breaks_the_reader(pieces: list[bytes], usage: bool) -> None:
    reader = StreamReader(chat(include_usage=usage))
    for piece in pieces:
        passed = reader.read(piece)
        assert passed == b"" or passed.endswith(b"\n\n")
        if reader.done or reader.failure:
            break
    assert reader.usage().completion_tokens >= 0
