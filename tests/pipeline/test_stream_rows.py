"""To read chunks that differ in their text only together gives what reading each by itself gives."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.errors import BadReply
from corral.pipeline.gather import Gathering
from corral.pipeline.stream import SHAPES_IN_VAIN, StreamReader
from support.exchanges import chunk
from support.samples import SAMPLES, Sample

CALL = Call(Endpoint.CHAT, model="", fields={}, stream=True)
DONE = b"data: [DONE]\n\n"


class OneByOne(StreamReader):
    """Learns no shape, so each event is read by itself."""

    def _learn(self, event: bytes) -> None:
        pass


def delta(text: bytes, *, index: int = 0, created: int = 1, key: bytes = b"content", end: bytes = b"") -> bytes:
    choice = b'{"finish_reason":null,"index":%d,"delta":{"%b":"%b"}}' % (index, key, text)
    return b'data: {"choices":[%b],"created":%d,"id":"x","model":"smol"%b}\n\n' % (choice, created, end)


def argument(text: bytes) -> bytes:
    call = b'{"index":0,"function":{"arguments":"%b"}}' % text
    return b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"tool_calls":[%b]}}],"model":"smol"}\n\n' % call


def other(**chunk: object) -> bytes:
    return b"data: " + json.dumps({"id": "x", "model": "smol"} | chunk, separators=(",", ":")).encode() + b"\n\n"


OTHERS = [
    other(choices=[{"finish_reason": "stop", "index": 0, "delta": {}}]),
    other(choices=[{"finish_reason": "stop", "index": 0, "delta": {"content": "Q"}}]),
    other(choices=[], usage={"completion_tokens": 3, "prompt_tokens": 7}, timings={"predicted_n": 3}),
    other(choices=[], prompt_progress={"total": 7, "cache": 2, "processed": 3, "time_ms": 1}),
    other(choices=[], error=None),
    other(error={"code": 500, "message": "x", "type": "server_error"}),
    *(DONE, b"data: null\n\n", b": ping\n\n", b"\n", b"\r\n", b"id: 1\n\n", b"data: {", b"}\n\n", b"nonsense\n\n"),
]
# Sound texts, and those that try to pass for something else.
TEXTS = [b"a", b" b", b"", b'\\"', b"\\\\", b"\\u00fc", "ü".encode(), b"[DONE]", b'\\"usage\\":', b"data: {\\n\\n"]
ODD = [b'"', b"\\", b'a","b', b'a",["b', b'b"],"c', b'","usage":{"x":"', b'"},"error":{"x":"', b'","finish_reason":"']
BROKEN = [b"\n", b"\r", b"\n\n", b"\0", b"\xff", b"\xc3", b"\xbc", b"\\ud83d", b"\\ude00"]

texts = st.sampled_from(TEXTS) | st.sampled_from(ODD + BROKEN) | st.text(max_size=3).map(lambda text: _inside(text))
rows = st.builds(
    lambda row, times, **more: b"".join(delta(text, **more) for text in row) * times,
    st.lists(texts, min_size=1, max_size=4),
    st.integers(1, 3),
    index=st.integers(0, 1),
    created=st.integers(1, 2),
    key=st.sampled_from([b"content", b"reasoning_content", b"role"]),
    end=st.sampled_from([b"", b"", b"", b',"timings":{}', b',"usage":null', b',"error":null']),
)
streams = st.lists(rows | st.sampled_from(OTHERS) | texts.map(argument), max_size=12).map(b"".join)
calls = st.builds(
    lambda **more: replace(CALL, **more),
    model=st.sampled_from(["", "smol", "mine"]),
    include_usage=st.booleans(),
    include_progress=st.booleans(),
)
cuts = st.lists(st.integers(0, 3000), max_size=8)


def _inside(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode(errors="replace")[1:-1]


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    return [stream[start:end] for start, end in pairwise([0, *sorted(at), len(stream) + 3000])]


def told(reader: StreamReader, piece: bytes) -> tuple[object, ...]:
    """All that can be seen of a reader after a piece."""
    passed = reader.read(piece)
    failure = (type(reader.failure), getattr(reader.failure, "message", None))
    return passed, reader.done, failure, reader.token_events, reader.alive, reader.usage()


@given(calls, streams, cuts)
@example(CALL, delta(b"a") + delta(b'a",["b') + delta(b"b") + delta(b'b"],"c'), [])
@example(CALL, OTHERS[1] + OTHERS[1].replace(b"Q", b"q") + DONE, [])
def test_what_is_read_together_is_what_is_read_one_by_one(call: Call, stream: bytes, at: list[int]) -> None:
    together, apart = StreamReader(call), OneByOne(call)
    for piece in cut(stream, at):
        assert told(together, piece) == told(apart, piece)


@given(st.sampled_from(SAMPLES), cuts)
def test_it_is_so_with_what_llama_server_sends(each: Sample, at: list[int]) -> None:
    together, apart = StreamReader(each.call(model="m")), OneByOne(each.call(model="m"))
    for piece in cut(each.asked, at):
        assert told(together, piece) == told(apart, piece)


@given(calls, streams, cuts)
@example(CALL, delta(b"a") + delta(b"\\ud83d") + delta(b"\\ude00"), [])
@example(CALL, delta(b"a") + delta(b"\xc3") + delta(b"\xbc"), [])
def test_what_is_gathered_together_is_what_is_gathered_one_by_one(call: Call, stream: bytes, at: list[int]) -> None:
    pieces = cut(stream, at)
    assert gathered(StreamReader(call, folds=True), pieces) == gathered(OneByOne(call), pieces)


@given(calls, streams, cuts, st.booleans())
@example(CALL, (delta(b"a") + delta(b" \xc3\xbc")) * 2 + DONE + delta(b"b"), [], True)
def test_what_is_read_as_it_was_framed_is_what_is_read_of_its_content(
    call: Call, stream: bytes, at: list[int], whole: bool
) -> None:
    framed, parsed = StreamReader(call), StreamReader(call)
    for piece in events_of(stream) if whole else filter(None, cut(stream, at)):
        before = parsed.token_events
        expected = told(parsed, piece)
        if passed := framed.read_chunk(chunk(piece)):
            assert framed.token_events == before + 1
            assert (passed, framed.done, framed.failure, framed.alive) == (expected[0], False, None, expected[4])
            assert framed.usage() == expected[5]
        else:
            assert told(framed, piece) == expected


def events_of(stream: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in stream.split(b"\n\n") if event]


def gathered(reader: StreamReader, pieces: list[bytes]) -> dict[str, Any] | str:
    gathering = Gathering(Endpoint.CHAT)
    try:
        for piece in pieces:
            gathering.add(reader.read(piece))
            if reader.failure:
                return str(reader.failure)
    except BadReply as error:
        return str(error)
    return gathering.reply()


# The property would hold without any row; these tell that there are rows.


class Counted(StreamReader):
    """Counts the events that were read by themselves."""

    read_alone = 0

    def _sort(self, event: bytes, passed: list[bytes]) -> None:
        self.read_alone += 1
        super()._sort(event, passed)


@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_of_a_hundred_tokens_one_is_read_alone(pieces: int) -> None:
    events = [delta(b"word") for _ in range(100)]
    reader = Counted(replace(CALL, model="mine"))
    each = 100 // pieces
    passed = [reader.read(b"".join(events[at : at + each])) for at in range(0, 100, each)]
    assert reader.read_alone == 1
    assert b"".join(passed) == b"".join(events).replace(b'"smol"', b'"mine"')


def test_a_token_that_comes_alone_needs_no_parsing() -> None:
    reader = Counted(replace(CALL, model="mine"))
    first = reader.read(delta(b"word"))
    for text in (b"word", b"", b' \\"a\\u00fc', "wörd 🐎".encode()):
        assert reader.read_chunk(chunk(delta(text))) == first.replace(b"word", text)
    assert (reader.read_alone, reader.token_events) == (1, 5)


@pytest.mark.parametrize(
    "framed",
    [
        delta(b"word"),
        chunk(delta(b"word"))[:-2],
        chunk(delta(b"word"))[1:],
        b"0" + chunk(delta(b"word")),
        chunk(delta(b"word")) + b"\r\n",
        chunk(delta(b"word")) * 2,
        chunk(delta(b"word") * 2),
        chunk(delta(b"word", created=2)),
        chunk(delta(b'"')),
        chunk(delta(b"\n")),
        chunk(delta(b"\xc3")),
        chunk(delta(b"\\ud83d")),
        b"0\r\n\r\n",
        b"",
    ],
)
def test_what_is_not_just_one_more_token_is_left_alone(framed: bytes) -> None:
    reader = StreamReader(CALL)
    assert reader.read_chunk(framed) == b""
    reader.read(delta(b"word"))
    assert reader.read_chunk(framed) == b""
    assert reader.token_events == 1


def test_what_waits_for_its_end_is_not_overtaken() -> None:
    reader = StreamReader(CALL)
    reader.read(delta(b"Once") + delta(b" upon")[:-1])
    assert reader.read_chunk(chunk(delta(b" a"))) == b""


def test_the_tick_of_a_second_costs_one_more() -> None:
    reader = Counted(CALL)
    for second in range(5 * SHAPES_IN_VAIN):
        reader.read(delta(b"word", created=second) * 10)
    assert reader.read_alone == 5 * SHAPES_IN_VAIN


def test_shapes_are_not_sought_for_ever_where_each_chunk_has_its_own() -> None:
    reader = Counted(CALL)
    for index in range(50):
        reader.read(delta(b"word", index=index % 2))
    reader.read(delta(b"word") * 10)
    assert reader.read_alone == 60


def test_folded_they_are_one_chunk_with_all_the_text() -> None:
    reader = StreamReader(CALL, folds=True)
    reader.read(delta(b"Once"))
    assert reader.read(delta(b" upon") + delta(b" a") + delta(b'\\"time')) == delta(b' upon a\\"time')
    assert reader.token_events == 4
