"""Upstreams that fail within a reply: a stream says so and ends without [DONE], a gathered reply is asked for again."""

from typing import Any

import pytest

from support.front import Front
from support.gateway import Gateway
from support.raw_client import Reply
from support.talk import (
    CHAT,
    COMPLETIONS,
    DONE,
    MODES,
    chat,
    completion,
    error_of,
    last_error,
    new_id,
    post,
    record_of,
    text_of,
)

Fault = dict[str, Any]

# Ways to break off, and the code that the client is told.
BREAKS: dict[str, str] = {
    "rst": "upstream_connection_lost",
    "fin": "upstream_connection_lost",
    "truncate": "upstream_connection_lost",
    "no_done": "upstream_connection_lost",
    "malformed": "upstream_bad_reply",
    "error_event": "upstream_failed",
}
# All but one can do so before the end.
BREAKS_EARLY = [fault for fault in BREAKS if fault != "no_done"]
# So many events come first: progress of the prompt, the role, and some tokens.
LATE = 8

# What is odd and complete all the same.
HARMLESS: dict[str, Fault] = {
    "byte a time": {"kind": "trickle", "size": 1},
    "slow trickle": {"kind": "trickle", "size": 400, "seconds": 0.005},
    "two segments an event": {"kind": "split"},
    "one segment for all": {"kind": "one_segment"},
    "CRLF": {"kind": "crlf"},
    "comments between": {"kind": "pings"},
    "usage missing": {"kind": "no_usage"},
}


def ask(gateway: Gateway, mode: str, *, request_id: str | None = None) -> Reply:
    return post(gateway, CHAT, chat(**MODES[mode]), **{"x-request-id": request_id or new_id()})


@pytest.mark.parametrize("fault", BREAKS)
def test_a_stream_that_breaks_off_ends_with_an_error_event(front: Front, fault: str) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    whole = text_of(ask(gateway, "stream"))
    fake.reset()
    cut = gateway.metric("corral_requests_total", outcome="cut")
    fake.fault(fault, after=LATE)
    reply = ask(gateway, "stream", request_id=request_id)
    assert last_error(reply)["code"] == BREAKS[fault]
    assert reply.raw.endswith(b"\r\n0\r\n\r\n")
    assert text_of(reply)
    assert whole.startswith(text_of(reply))
    assert len(fake.requests(CHAT)) == 1
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"], record["error_code"]) == (200, "cut", BREAKS[fault])
    assert record["completion_tokens"] > 0
    assert record["prompt_tokens"] > 0
    assert gateway.metric("corral_requests_total", outcome="cut") == cut + 1


@pytest.mark.parametrize("fault", BREAKS_EARLY)
def test_usage_of_a_stream_that_breaks_off_is_estimated(front: Front, fault: str) -> None:
    request_id = new_id()
    front.one.fault(fault, after=LATE)
    ask(front.gateway, "stream", request_id=request_id)
    assert record_of(front.gateway, request_id)["estimated"]


@pytest.mark.parametrize("fault", BREAKS)
def test_a_gathered_reply_that_breaks_off_is_asked_for_again(front: Front, fault: str) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    expected = text_of(ask(gateway, "gathered"))
    fake.reset()
    fake.fault(fault, after=LATE, times=1)
    reply = ask(gateway, "gathered", request_id=request_id)
    assert reply.status == 200
    assert text_of(reply) == expected
    assert reply.json["usage"]["completion_tokens"] == 16
    record = record_of(gateway, request_id)
    assert (record["attempts"], record["estimated"], record["outcome"]) == (2, False, "ok")


@pytest.mark.parametrize("fault", BREAKS)
def test_half_a_reply_is_never_a_whole_one(front: Front, fault: str) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    fake.fault(fault, after=LATE)
    reply = ask(gateway, "gathered", request_id=request_id)
    assert (reply.status, error_of(reply)["code"]) == (502, BREAKS[fault])
    assert len(fake.requests(CHAT)) == 3
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"]) == (502, "upstream_error")


@pytest.mark.parametrize("fault", ["rst", "fin", "truncate"])
def test_a_body_that_breaks_off_is_asked_for_again(front: Front, fault: str) -> None:
    request_id = new_id()
    front.one.fault(fault, times=1)
    reply = ask(front.gateway, "whole", request_id=request_id)
    assert reply.status == 200
    assert reply.json["usage"]["completion_tokens"] == 8
    assert record_of(front.gateway, request_id)["attempts"] == 2


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("fault", BREAKS_EARLY)
def test_a_stream_that_breaks_off_before_its_first_token_is_tried_again(front: Front, fault: str, after: int) -> None:
    request_id = new_id()
    front.one.fault(fault, after=after, times=1)
    reply = ask(front.gateway, "stream", request_id=request_id)
    assert reply.events[-1] == DONE
    assert not any("error" in chunk for chunk in reply.chunks)
    assert record_of(front.gateway, request_id)["attempts"] == 2


def test_an_error_before_the_first_token_is_told_by_the_status(front: Front) -> None:
    front.one.fault("error_event", after=1)
    reply = ask(front.gateway, "stream")
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_failed")
    assert "text/event-stream" not in reply.headers["content-type"]


@pytest.mark.parametrize("mode", ["gathered", "stream"])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_and_complete_is_a_success(front: Front, name: str, mode: str) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    expected = text_of(ask(gateway, mode))
    fake.reset()
    fake.fault(**HARMLESS[name])
    reply = ask(gateway, mode, request_id=request_id)
    assert reply.status == 200
    assert text_of(reply) == expected
    assert mode == "gathered" or reply.events[-1] == DONE
    record = record_of(gateway, request_id)
    assert (record["outcome"], record["attempts"]) == ("ok", 1)
    assert record["estimated"] is (name == "usage missing")
    assert record["completion_tokens"] > 0


def test_estimated_usage_is_counted(front: Front) -> None:
    before = front.gateway.metric("corral_estimated_usage_total", model="one")
    front.one.fault("no_usage")
    ask(front.gateway, "gathered")
    assert front.gateway.metric("corral_estimated_usage_total", model="one") == before + 1


@pytest.mark.parametrize("mode", ["gathered", "stream"])
def test_a_finish_reason_that_comes_twice_does_not_end_a_reply_twice(front: Front, mode: str) -> None:
    front.one.fault("double_finish")
    reply = ask(front.gateway, mode)
    if mode == "gathered":
        assert [choice["finish_reason"] for choice in reply.json["choices"]] == ["stop"]
    else:
        assert reply.events.count(DONE) == 1
        assert reply.events[-1] == DONE


@pytest.mark.parametrize("mode", ["gathered", "stream"])
def test_a_huge_event_passes(front: Front, mode: str) -> None:
    front.one.fault("huge", after=LATE, size=3_000_000)
    reply = ask(front.gateway, mode)
    assert reply.status == 200
    assert text_of(reply).count("x" * 3_000_000) == 1


@pytest.mark.parametrize("mode", ["gathered", "stream"])
def test_an_event_that_does_not_end_is_cut_off(front: Front, mode: str) -> None:
    front.one.fault("huge", after=LATE, size=20 * 1024 * 1024)
    reply = ask(front.gateway, mode)
    error = last_error(reply) if mode == "stream" else error_of(reply)
    assert error["code"] == "upstream_bad_reply"
    assert len(reply.raw) < 1_000_000


# -- too slow: completions have short limits here --------------------------------


@pytest.mark.parametrize(
    ("mode", "fault", "phase"),
    [
        ("stream", "silence", "first_byte"),
        ("stream", "head_then_silence", "first_byte"),
        ("gathered", "silence", "first_byte"),
        ("gathered", "head_then_silence", "first_byte"),
        # A reply that is asked for whole is short: its last token comes soon after its first.
        ("whole", "silence", "first_byte"),
    ],
)
def test_silence_before_the_first_byte_is_a_504_that_names_the_phase(
    front: Front, mode: str, fault: str, phase: str
) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    fake.fault(fault)
    reply = post(gateway, COMPLETIONS, completion(**MODES[mode]), **{"x-request-id": request_id})
    error = error_of(reply)
    assert (reply.status, error["code"]) == (504, "upstream_timeout")
    assert f"'{phase}'" in error["message"]
    # Whoever has the request may still be working on it: it is not sent to another.
    (request,) = fake.until_ended(COMPLETIONS)
    assert request["left_at"] is not None
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"]) == (504, "timeout")


@pytest.mark.parametrize("mode", ["gathered", "stream"])
def test_a_stall_between_tokens_is_told_by_its_name(front: Front, mode: str) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    fake.fault("stall", after=LATE)
    reply = post(gateway, COMPLETIONS, completion(**MODES[mode]), **{"x-request-id": request_id})
    error = last_error(reply) if mode == "stream" else error_of(reply)
    assert error["code"] == "upstream_timeout"
    assert "'between_tokens'" in error["message"]
    assert fake.until_ended(COMPLETIONS)[-1]["left_at"] is not None
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"]) == ((200, "cut") if mode == "stream" else (504, "timeout"))


@pytest.mark.parametrize("mode", ["gathered", "stream"])
def test_a_reply_without_end_is_cut_by_the_total_limit(front: Front, mode: str) -> None:
    gateway, fake = front.gateway, front.one
    fake.set(token_s=0.2)
    reply = post(gateway, COMPLETIONS, completion('script:{"count": 30}', **MODES[mode]))
    error = last_error(reply) if mode == "stream" else error_of(reply)
    assert error["code"] == "upstream_timeout"
    assert "'total'" in error["message"]
    assert mode == "stream" or reply.headers["x-should-retry"] == "false"
