"""Streams: signs of life while they wait, and usage for those who ask."""

from typing import Any

import pytest

from support.front import Front, Narrow
from support.raw_client import Reply
from support.talk import (
    CHAT,
    COMPLETIONS,
    DONE,
    begin,
    chat,
    completion,
    last_error,
    new_id,
    post,
    record_of,
    text_of,
)

COMMENT = b": waiting\n\n"
USAGE = {"stream_options": {"include_usage": True}}


def ask(narrow: Narrow, **headers: str) -> Reply:
    return post(narrow.gateway, CHAT, chat(max_tokens=30, stream=True), **headers)


def test_a_stream_that_waits_in_the_queue_shows_signs_of_life(narrow: Narrow) -> None:
    request_id = new_id()
    with narrow.occupied():
        client = begin(narrow.gateway, CHAT, chat(max_tokens=30, stream=True), **{"x-request-id": request_id})
        start = client.receive(until=COMMENT)
        narrow.until_waiting(1)
    rest = client.receive()
    client.close()
    assert start.status == 200
    assert start.headers["x-request-id"] == request_id
    reply = Reply([*start.parts, *rest.parts])
    assert reply.events[-1] == DONE
    assert record_of(narrow.gateway, request_id)["outcome"] == "ok"


def test_a_stream_that_asks_for_progress_is_told_its_place_in_the_queue(narrow: Narrow) -> None:
    body = chat(max_tokens=30, stream=True, return_progress=True)
    with narrow.occupied():
        first = begin(narrow.gateway, CHAT, body)
        narrow.until_waiting(1)
        second = begin(narrow.gateway, CHAT, body)
        starts = [first.receive(until=b"place=1"), second.receive(until=b"place=2 waiting=2\n\n")]
    rests = [first.receive(), second.receive()]
    for client, start, rest in zip((first, second), starts, rests, strict=True):
        client.close()
        reply = Reply([*start.parts, *rest.parts])
        assert b": queued place=" in reply.body
        assert reply.events[-1] == DONE


def test_a_stream_whose_prompt_takes_long_shows_signs_of_life(narrow: Narrow) -> None:
    expected = text_of(ask(narrow))
    narrow.fake.set(prefill_s=0.7)
    reply = ask(narrow)
    assert reply.body.count(COMMENT) >= 2
    assert text_of(reply) == expected


def test_a_stream_that_stalls_between_tokens_shows_signs_of_life(narrow: Narrow) -> None:
    expected = text_of(ask(narrow))
    narrow.fake.fault("stall", after=8, seconds=0.7)
    reply = ask(narrow)
    before, comment, after = reply.body.partition(COMMENT)
    assert comment
    assert b'"content"' in before
    assert b'"content"' in after
    assert text_of(reply) == expected
    assert reply.events[-1] == DONE


def test_a_stream_that_has_shown_signs_of_life_is_still_tried_again(narrow: Narrow) -> None:
    request_id = new_id()
    expected = text_of(ask(narrow))
    narrow.fake.fault("status", status=503, retry_after="1", times=1)
    reply = ask(narrow, **{"x-request-id": request_id})
    assert COMMENT in reply.body
    assert text_of(reply) == expected
    assert reply.events[-1] == DONE
    assert record_of(narrow.gateway, request_id)["attempts"] == 2


def test_an_error_after_signs_of_life_is_told_in_the_stream(narrow: Narrow) -> None:
    request_id = new_id()
    narrow.fake.set(prefill_s=0.5)
    narrow.fake.fault("error_event", after=2)
    narrow.fake.fault("status", status=500, skip=1)
    reply = ask(narrow, **{"x-request-id": request_id})
    assert COMMENT in reply.body
    assert last_error(reply)["code"] == "upstream_failed"
    assert "choices" not in reply.body.decode()
    record = record_of(narrow.gateway, request_id)
    assert (record["status"], record["outcome"], record["attempts"]) == (200, "upstream_error", 2)


def test_a_quick_stream_has_no_comments(front: Front) -> None:
    reply = post(front.gateway, CHAT, chat(max_tokens=30, stream=True))
    assert b"\n:" not in reply.body


# -- usage -----------------------------------------------------------------------

STREAMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": (CHAT, chat(max_tokens=30, stream=True), 16),
    "two choices": (CHAT, chat(max_tokens=30, stream=True, n=2), 32),
    "completion": (COMPLETIONS, completion(max_tokens=30, stream=True), 16),
    "two prompts": (COMPLETIONS, completion(["once", "twice"], max_tokens=30, stream=True), 32),
}


@pytest.mark.parametrize("name", STREAMS)
def test_usage_is_not_shown_to_who_did_not_ask_and_counted_all_the_same(front: Front, name: str) -> None:
    path, body, tokens = STREAMS[name]
    request_id = new_id()
    reply = post(front.gateway, path, body, **{"x-request-id": request_id})
    assert not any(chunk.get("usage") for chunk in reply.chunks)
    assert all(chunk["choices"] for chunk in reply.chunks)
    assert b"prompt_progress" not in reply.body
    record = record_of(front.gateway, request_id)
    assert (record["completion_tokens"], record["estimated"]) == (tokens, False)


@pytest.mark.parametrize("name", STREAMS)
def test_usage_is_one_chunk_before_the_end_for_who_asked(front: Front, name: str) -> None:
    path, body, tokens = STREAMS[name]
    request_id = new_id()
    reply = post(front.gateway, path, body | USAGE, **{"x-request-id": request_id})
    assert reply.events[-1] == DONE
    *before, last = reply.chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == tokens
    assert last["usage"]["total_tokens"] == tokens + last["usage"]["prompt_tokens"]
    assert not any(chunk.get("usage") for chunk in before)
    record = record_of(front.gateway, request_id)
    assert record["prompt_tokens"] == last["usage"]["prompt_tokens"]


def test_usage_of_a_gathered_reply_is_that_of_all_its_choices(front: Front) -> None:
    reply = post(front.gateway, CHAT, chat(max_tokens=30, n=2)).json
    assert reply["usage"]["completion_tokens"] == 32
    one = post(front.gateway, CHAT, chat(max_tokens=30)).json
    assert reply["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
