"""A gathered stream is the reply that llama-server sends whole."""

import asyncio
import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.errors import BadReply, ConnectionLost, CorralError, UpstreamFailed, UpstreamTimeout
from corral.core.record import Record
from corral.core.usage import Usage
from corral.pipeline.gather import Gathered, Gathering
from corral.pipeline.relay import StreamWatch
from corral.pipeline.strand import Strand
from corral.pipeline.stream import StreamReader
from support.exchanges import LONG_S, OK, SHORT_S, murmur, opened, send
from support.loops import on_both_loops
from support.raw_server import Peer, Script, serving
from support.samples import SAMPLES, Sample, events_of, sample

HEAD = OK + b"content-type: text/event-stream\r\n\r\n"
# What a whole reply has and two answers to the same question share.
SHARED = ("model", "object", "system_fingerprint")


def gathered(each: Sample, pieces: Sequence[bytes]) -> dict[str, Any]:
    reader, gathering = StreamReader(each.call(), folds=True), Gathering(each.endpoint)
    for piece in pieces:
        gathering.add(reader.read(piece))
    assert reader.done
    return gathering.reply()


def without_call_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """llama-server makes up a new id for each tool call."""
    for choice in choices:
        for call in choice.get("message", {}).get("tool_calls", ()):
            assert call.pop("id")
    return choices


def choices_of(reply: dict[str, Any]) -> list[dict[str, Any]]:
    return without_call_ids(json.loads(json.dumps(reply["choices"])))


@pytest.mark.parametrize("each", SAMPLES, ids=[each.name for each in SAMPLES])
def test_the_choices_equal_those_of_a_whole_reply(each: Sample) -> None:
    reply = gathered(each, [each.asked])
    assert json.dumps(choices_of(reply)) == json.dumps(choices_of(each.whole))


@pytest.mark.parametrize("each", SAMPLES, ids=[each.name for each in SAMPLES])
def test_the_reply_has_everything_that_a_whole_reply_has(each: Sample) -> None:
    reply = gathered(each, [each.asked])
    assert reply.keys() == each.whole.keys() - {"usage"}
    assert {key: reply[key] for key in SHARED} == {key: each.whole[key] for key in SHARED}
    assert reply["timings"].keys() == each.whole["timings"].keys()


@given(st.sampled_from(SAMPLES), st.data())
def test_the_reply_does_not_depend_on_how_the_stream_was_cut(each: Sample, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(each.asked)), max_size=8)))
    pieces = [each.asked[start:end] for start, end in zip([0, *cuts], [*cuts, len(each.asked)], strict=True)]
    assert gathered(each, pieces) == gathered(each, [each.asked])


# Shapes that no sample has.


def chunk(*choices: dict[str, Any], **more: object) -> bytes:
    told = {"choices": choices, "created": 1, "id": "x", "model": "m", "object": "chat.completion.chunk"} | more
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def delta(index: int = 0, finish_reason: str | None = None, **fields: object) -> dict[str, Any]:
    return {"finish_reason": finish_reason, "index": index, "delta": fields}


def tool_call(index: int, **function: str) -> dict[str, Any]:
    first = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
    return {"index": index, **first, "function": function}


def chat(*events: bytes) -> dict[str, Any]:
    gathering = Gathering(Endpoint.CHAT)
    gathering.add(b"".join(events))
    return gathering.reply()


def test_tool_calls_whose_pieces_interleave_are_kept_apart() -> None:
    (choice,) = chat(
        chunk(delta(role="assistant", content=None)),
        chunk(delta(tool_calls=[tool_call(1, name="second", arguments="{")])),
        chunk(delta(tool_calls=[tool_call(0, name="first", arguments="")])),
        chunk(delta(tool_calls=[tool_call(1, arguments="}"), tool_call(0, arguments="{}")])),
        chunk(delta(finish_reason="tool_calls")),
    )["choices"]
    assert choice == {
        "finish_reason": "tool_calls",
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "first", "arguments": "{}"}, "id": "call_0"},
                {"type": "function", "function": {"name": "second", "arguments": "{}"}, "id": "call_1"},
            ],
        },
    }


def test_a_message_may_hold_reasoning_words_and_a_tool_call() -> None:
    (choice,) = chat(
        chunk(delta(reasoning_content="I ")),
        chunk(delta(reasoning_content="see.")),
        chunk(delta(content="Let me look.")),
        chunk(delta(tool_calls=[tool_call(0, name="look", arguments="{}")])),
        chunk(delta(finish_reason="tool_calls")),
    )["choices"]
    message = choice["message"]
    assert list(message) == ["role", "content", "reasoning_content", "tool_calls"]
    assert (message["content"], message["reasoning_content"]) == ("Let me look.", "I see.")


def test_choices_come_in_the_order_of_their_index() -> None:
    reply = chat(chunk(delta(2, content="c")), chunk(delta(0, content="a"), delta(1, content="b")))
    assert [(each["index"], each["message"]["content"]) for each in reply["choices"]] == [(0, "a"), (1, "b"), (2, "c")]


def test_progress_that_a_client_has_asked_for_is_no_part_of_the_reply() -> None:
    progress = {"choices": [delta()], "prompt_progress": {"total": 7, "cache": 2}}
    reply = chat(b"data: " + json.dumps(progress).encode() + b"\n\n", chunk(delta(content="a")))
    assert reply == chat(chunk(delta(content="a")))


def test_a_choice_that_says_nothing_is_an_empty_message() -> None:
    (choice,) = chat(chunk(delta(finish_reason="stop")))["choices"]
    assert choice == {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": ""}}


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {}\n\n",
        b'data: {"choices":5}\n\n',
        b'data: {"choices":[5]}\n\n',
        b'data: {"choices":[{"delta":{}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{}]}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":5}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":"x"}]}\n\n',
        b'data: {"choices":[{"index":0,"logprobs":{"content":5}}]}\n\n',
        b'data: {"choices":[nul]}\n\n',
    ],
)
def test_a_malformed_event_is_a_bad_reply(bad: bytes) -> None:
    with pytest.raises(BadReply, match="malformed"):
        chat(bad)


# From a socket.


def ending(stream: bytes) -> Script:
    """Sends the stream and ends the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + stream)
        peer.fin()

    return script


async def gather_from(
    script: Script, call: Call, record: Record, between_tokens_s: float = LONG_S
) -> dict[str, Any] | CorralError:
    """What is gathered from a server, or the error that it ends in."""
    ticks = count(1)
    async with opened() as client, serving(script) as server:
        with await send(client, server) as reply:
            watch = StreamWatch(reply, record, lambda: float(next(ticks)), between_tokens_s)
            gathered = Gathered(call.endpoint)
            strand = Strand(call, gathered.open, folds=True)
            try:
                await strand.splice(reply, watch.tokens)
            except CorralError as error:
                return error
            finally:
                record.usage = strand.usage
            whole: dict[str, Any] = json.loads(gathered.body(record.usage))
            return whole


def new_record() -> Record:
    return Record("r", Endpoint.CHAT, opened_at=0.0, opened_unix_s=0.0)


@on_both_loops
async def test_the_reply_tells_the_usage_of_all_choices() -> None:
    each, record = sample("two choices"), new_record()
    reply = await gather_from(ending(each.asked), each.call(model="mine"), record)
    assert isinstance(reply, dict)
    assert reply["model"] == "mine"
    assert reply["usage"] == {
        "completion_tokens": 8,
        "prompt_tokens": 34,
        "total_tokens": 42,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert record.usage == Usage(prompt_tokens=34, completion_tokens=8)


@on_both_loops
async def test_the_record_knows_when_tokens_came() -> None:
    each, record = sample("a cut at max_tokens"), new_record()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        await peer.dribble(each.asked)
        await peer.gone()

    await gather_from(script, each.call(), record)
    assert record.first_byte_at == 1.0
    assert record.last_token_at is not None
    assert record.last_token_at > record.first_byte_at
    assert record.token_events == 5


@on_both_loops
async def test_a_stream_that_ends_without_done_is_no_reply() -> None:
    each, record = sample("a cut at max_tokens"), new_record()
    # What is missing: the usage chunk and [DONE].
    cut = b"".join(events_of(each.asked)[:-2])
    assert isinstance(await gather_from(ending(cut), each.call(), record), ConnectionLost)
    assert record.usage == Usage(prompt_tokens=34, completion_tokens=5, estimated=True)


@on_both_loops
async def test_an_error_in_the_stream_is_raised() -> None:
    each = sample("a cut at max_tokens")
    error = b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n'
    stream = b"".join(events_of(each.asked)[:4]) + error
    assert isinstance(await gather_from(ending(stream), each.call(), new_record()), UpstreamFailed)


@on_both_loops
@pytest.mark.parametrize("bad", [b"nonsense\n\n", b'data: {"choices":[{"index":0}],"model":}\n\n'])
async def test_a_malformed_event_in_the_stream_is_raised(bad: bytes) -> None:
    each = sample("a cut at max_tokens")
    stream = b"".join(events_of(each.asked)[:4]) + bad
    assert isinstance(await gather_from(ending(stream), each.call(), new_record()), BadReply)


@on_both_loops
@pytest.mark.parametrize("piece", [b": ping\n\n", b"data: null\n\n", b"\n", b"x"])
async def test_what_is_no_token_does_not_keep_a_stuck_stream_alive(piece: bytes) -> None:
    each, record = sample("a cut at max_tokens"), new_record()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + b"".join(events_of(each.asked)[:4]))
        await murmur(peer, piece)

    assert isinstance(await gather_from(script, each.call(), record, 4 * SHORT_S), UpstreamTimeout)
    assert record.token_events > 0


@on_both_loops
async def test_tokens_keep_a_slow_stream_alive() -> None:
    each, record = sample("a cut at max_tokens"), new_record()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        first, *more = events_of(each.asked)
        await peer.send(first)
        # Much longer in all than the stream may be silent.
        for event in [*[events_of(each.asked)[3]] * 45, *more]:
            await peer.send(event)
            await asyncio.sleep(SHORT_S / 2)
        peer.fin()

    assert isinstance(await gather_from(script, each.call(), record, 20 * SHORT_S), dict)
