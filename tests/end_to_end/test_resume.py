"""An answer that breaks off goes on at another replica, and its client does not notice; or it is told."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.fake import FakeLlama
from support.front import Front, Narrow
from support.gateway import Gateway
from support.matrix import Fault, said_to
from support.raw_client import Reply
from support.talk import CHAT, COMPLETIONS, DONE, begin, chat, completion, last_error, new_id, post, record_of, text_of

LOST = "upstream_connection_lost"
# Progress of the prompt, the role, and some tokens.
LATE = 8
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
MODES: dict[str, dict[str, Any]] = {"stream": STREAM, "gathered": {}}


def script(**told: Any) -> str:
    return f"script:{json.dumps(told)}"


def ask(front: Front, body: dict[str, Any], path: str = CHAT) -> tuple[Reply, dict[str, Any]]:
    """The reply, and the record of it."""
    request_id = new_id()
    reply = post(front.gateway, path, {**body, "model": "two"}, **{"x-request-id": request_id})
    return reply, record_of(front.gateway, request_id)


def break_both(front: Front, **fault: Any) -> None:
    """Each of the two fails once, whichever comes first."""
    for fake in (front.left, front.right):
        fake.fault(**{"kind": "fin", "after": LATE, "times": 1, **fault})


def asked(front: Front, path: str = CHAT) -> list[dict[str, Any]]:
    """What the two were asked, in that order."""
    requests = [request for fake in (front.left, front.right) for request in fake.requests(path)]
    return [request["body"] for request in sorted(requests, key=lambda request: request["received_at"])]


def usage_of(reply: Reply) -> dict[str, Any]:
    told = reply.json if "json" in reply.headers["content-type"] else reply.chunks[-1]
    usage: dict[str, Any] = told["usage"]
    return usage


def ensure_one_stream(reply: Reply) -> None:
    """Nothing of a joint is to be seen."""
    assert reply.events[-1] == DONE
    assert len({chunk["id"] for chunk in reply.chunks}) == 1
    choices = [chunk["choices"][0] for chunk in reply.chunks if chunk["choices"]]
    assert ["role" in choice["delta"] for choice in choices].count(True) == 1
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert not any("error" in chunk or "prompt_progress" in chunk for chunk in reply.chunks)


@pytest.mark.parametrize("mode", MODES)
def test_a_chat_goes_on_elsewhere_and_nothing_of_it_is_seen(front: Front, mode: str) -> None:
    body = chat("hello", max_tokens=30, **MODES[mode])
    before = front.gateway.metric("corral_resumed_total", model="two", reason=LOST)
    whole, _ = ask(front, body)
    break_both(front)
    reply, record = ask(front, body)
    assert text_of(reply) == text_of(whole) == said_to(CHAT, body)
    assert {**usage_of(reply), "prompt_tokens_details": None} == {**usage_of(whole), "prompt_tokens_details": None}
    if mode == "stream":
        ensure_one_stream(reply)
    # Both have failed: the third attempt comes to the end.
    assert (record["outcome"], record["attempts"], record["resumed"]) == ("ok", 3, 2)
    assert (record["completion_tokens"], record["estimated"]) == (16, False)
    assert front.gateway.metric("corral_resumed_total", model="two", reason=LOST) == before + 2


def test_the_rest_is_asked_for_with_the_text_so_far(front: Front) -> None:
    break_both(front, after=6)
    body = chat("hello", max_tokens=30, seed=7, stream=True)
    ask(front, body)
    *_, last = asked(front)
    said = said_to(CHAT, body)
    begun = last["messages"][-1]["content"]
    assert said.startswith(begun)
    assert last["messages"][-1] == {"role": "assistant", "content": begun}
    assert last["max_tokens"] == 30 - len(begun.split())
    assert last["seed"] == 7


@pytest.mark.parametrize("mode", MODES)
def test_a_completion_goes_on_elsewhere(front: Front, mode: str) -> None:
    body = completion(script(count=20), max_tokens=30, **MODES[mode])
    break_both(front)
    reply, record = ask(front, body, COMPLETIONS)
    assert text_of(reply) == said_to(COMPLETIONS, body)
    assert usage_of(reply)["completion_tokens"] == 20
    assert (record["outcome"], record["resumed"]) == ("ok", 2)


@pytest.mark.parametrize("after", range(2, 14))
def test_it_goes_on_from_wherever_it_broke_off(front: Front, after: int) -> None:
    told = {"reasoning": "let me think", "text": "the horse is tall"}
    break_both(front, after=after)
    reply, record = ask(front, chat(script(**told), max_tokens=30, stream=True))
    ensure_one_stream(reply)
    deltas = [chunk["choices"][0]["delta"] for chunk in reply.chunks if chunk["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == told["reasoning"]
    assert "".join(delta.get("content") or "" for delta in deltas) == told["text"]
    assert record["outcome"] == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_repeats_itself_loses_nothing(front: Front, mode: str) -> None:
    """What is new looks like what the replica was told, and repeats."""
    text = "ha" + " ha" * 11
    break_both(front)
    reply, record = ask(front, chat(script(text=text), max_tokens=30, **MODES[mode]))
    assert text_of(reply) == text
    assert (record["outcome"], record["resumed"], record["completion_tokens"]) == ("ok", 2, 12)


def test_an_answer_that_had_only_to_end_is_ended(front: Front) -> None:
    """All tokens that were wanted have come, and the last words have not: nobody need be asked for them."""
    break_both(front, after=2 + 1 + 5)
    reply, record = ask(front, chat(script(count=9), max_tokens=5, **STREAM))
    assert (reply.events[-1], len(text_of(reply).split())) == (DONE, 5)
    assert reply.chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert usage_of(reply)["completion_tokens"] == 5
    assert record["outcome"] == "ok"
    assert len(asked(front)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_without_its_last_line_has_said_all(front: Front, mode: str) -> None:
    break_both(front, kind="no_done")
    reply, record = ask(front, chat("hello", max_tokens=30, **MODES[mode]))
    assert len(text_of(reply).split()) == 16
    assert usage_of(reply)["completion_tokens"] == 16
    assert (record["outcome"], record["estimated"]) == ("ok", False)
    assert len(asked(front)) == 1


def test_one_that_stalls_is_left_for_another(front: Front) -> None:
    body = completion(script(count=12), max_tokens=30, stream=True)
    front.left.fault("stall", after=LATE, seconds=30, times=1)
    front.right.fault("stall", after=LATE, seconds=30, times=1)
    reply, record = ask(front, body, COMPLETIONS)
    # The second one has no other beside it that was not tried.
    assert record["resumed"] == 1
    assert said_to(COMPLETIONS, body).startswith(text_of(reply))
    assert last_error(reply)["code"] == "upstream_timeout"


UNSOUND: dict[str, dict[str, Any]] = {
    "a grammar": {"grammar": "root ::= x"},
    "a schema": {"response_format": {"type": "json_object"}},
    "two choices": {"n": 2},
    "probabilities": {"logprobs": True},
    "a tool that was called": {"content": script(tool_calls=[{"name": "f", "arguments": {"a": "b c d e f"}}])},
}


@pytest.mark.parametrize("why", UNSOUND)
def test_what_cannot_be_gone_on_with_is_told(front: Front, why: str) -> None:
    content = UNSOUND[why].get("content", "hello")
    fields = {key: value for key, value in UNSOUND[why].items() if key != "content"}
    break_both(front)
    reply, record = ask(front, chat(content, max_tokens=30, stream=True, **fields))
    assert last_error(reply)["code"] == LOST
    assert (record["outcome"], record["resumed"], record["attempts"]) == ("cut", 0, 1)


@pytest.mark.parametrize("why", UNSOUND)
def test_what_cannot_be_gone_on_with_begins_anew_where_nobody_has_seen_it(front: Front, why: str) -> None:
    content = UNSOUND[why].get("content", "hello")
    fields = {key: value for key, value in UNSOUND[why].items() if key != "content"}
    body = chat(content, max_tokens=30, **fields)
    whole, _ = ask(front, body)
    break_both(front)
    reply, record = ask(front, body)
    assert reply.status == 200
    assert reply.json["choices"] == whole.json["choices"]
    assert (record["outcome"], record["resumed"], record["attempts"]) == ("ok", 0, 3)


def test_a_prompt_that_has_become_too_long_ends_in_the_error_that_broke_it_off(front: Front) -> None:
    front.left.fault("fin", after=LATE, times=1)
    front.right.fault("fin", after=LATE, times=1)
    for fake in (front.left, front.right):
        fake.fault("status", status=400, skip=1)
    reply, record = ask(front, chat("hello", max_tokens=30, stream=True))
    assert last_error(reply)["code"] == LOST
    assert record["outcome"] == "cut"


def test_a_client_that_has_begun_the_answer_itself_gets_the_rest(front: Front) -> None:
    whole = said_to(CHAT, chat("hello", max_tokens=30))
    begun = " ".join(whole.split()[:2])
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": begun}]
    break_both(front, after=6)
    reply, record = ask(front, {"messages": messages, "max_tokens": 30, "stream": True})
    assert begun + text_of(reply) == whole
    assert record["resumed"] == 2


# Without the will to go on.


@pytest.fixture(scope="module")
def reluctant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, FakeLlama]]:
    directory = tmp_path_factory.mktemp("reluctant")
    with (
        FakeLlama() as fake,
        Gateway(directory, MODEL_UPSTREAMS=f"two={fake.url}", CORRAL_RETRIES_RESUMES="0") as gateway,
    ):
        gateway.until_ready()
        yield gateway, fake


def test_an_operator_can_have_it_told_at_once(reluctant: tuple[Gateway, FakeLlama]) -> None:
    gateway, fake = reluctant
    fake.fault("fin", after=LATE, times=1)
    reply = post(gateway, CHAT, chat("hello", model="two", max_tokens=30, stream=True))
    assert last_error(reply)["code"] == LOST
    fake.fault("fin", after=LATE, times=1)
    gateway.until_ready()
    reply = post(gateway, CHAT, chat("hello", model="two", max_tokens=30))
    assert len(text_of(reply).split()) == 16


# Clients that leave when an answer has broken off, and has not gone on yet.

# What holds it up, and what shows that it does.
HOLDUPS: dict[str, tuple[Fault, Callable[[Narrow], bool]]] = {
    "counting": ({"kind": "silence", "path": "/tokenize"}, lambda narrow: bool(narrow.fake.requests("/tokenize"))),
    "in the queue": ({"kind": "loading", "path": "/health"}, lambda narrow: waiting(narrow) == 1),
    "reading": ({"kind": "head_then_silence", "skip": 1}, lambda narrow: len(narrow.fake.requests(CHAT)) == 2),
    "backing off": (
        {"kind": "status", "status": 503, "retry_after": "9", "skip": 1},
        lambda narrow: [request["ended"] for request in narrow.fake.requests(CHAT)] == ["fault", "fault"],
    ),
}


def waiting(narrow: Narrow) -> float:
    return narrow.gateway.metric("corral_queue_waiters")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", HOLDUPS)
def test_a_client_that_leaves_before_its_answer_goes_on_leaves_nothing(narrow: Narrow, phase: str, mode: str) -> None:
    gateway, fake, request_id = narrow.gateway, narrow.fake, new_id()
    fault, held_up = HOLDUPS[phase]
    fake.fault("fin", after=LATE, times=1)
    fake.fault(**fault)
    body = chat("hello", max_tokens=30, **MODES[mode])
    with begin(gateway, CHAT, body, **{"x-request-id": request_id}):
        gateway.until(lambda: held_up(narrow), phase)
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"], record["error_code"]) == (499, "client_gone", None)
    fake.clear_faults()
    # The slot is free at once, and the replica trusted.
    assert post(gateway, CHAT, body).status == 200
