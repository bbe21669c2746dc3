"""Upstreams that fail before the first byte: what is tried again, what is not, and what the client is told."""

from typing import Any

import pytest

from support.fake import FakeLlama
from support.front import Front
from support.gateway import Gateway
from support.raw_client import Reply
from support.talk import CHAT, EMBEDDINGS, MODES, chat, error_of, new_id, post, record_of, text_of

Fault = dict[str, Any]

# What passes, with the reason that the metric of retries gives.
PASSING: dict[str, tuple[Fault, str]] = {
    "loading": ({"kind": "loading"}, "model_loading"),
    "429": ({"kind": "status", "status": 429}, "upstream_failed"),
    "502": ({"kind": "status", "status": 502}, "upstream_failed"),
    "503": ({"kind": "status", "status": 503}, "upstream_failed"),
    "503 in HTML": ({"kind": "status", "status": 503, "body": "html"}, "upstream_failed"),
    "503 without a body": ({"kind": "status", "status": 503, "body": "empty"}, "upstream_failed"),
    "504 in plain text": ({"kind": "status", "status": 504, "body": "text"}, "upstream_failed"),
    "FIN": ({"kind": "close"}, "upstream_connection_lost"),
    "RST": ({"kind": "reset"}, "upstream_connection_lost"),
    "half a head": ({"kind": "head_cut"}, "upstream_connection_lost"),
    "not HTTP": ({"kind": "garbage"}, "upstream_bad_reply"),
    "wrong content type": ({"kind": "wrong_type"}, "upstream_bad_reply"),
}

# The last resort of one replica alone would be to wait, or to give up.
ELSEWHERE = {name: fault for name, (fault, _) in PASSING.items()} | {
    "503 for long": {"kind": "status", "status": 503, "retry_after": "3600"}
}

# What stays: the upstream's fault, and the status and code that the client gets.
STAYING: dict[str, tuple[Fault, int, str]] = {
    "400": ({"status": 400}, 400, "invalid_request"),
    "400 in HTML": ({"status": 400, "body": "html"}, 400, "invalid_request"),
    "401": ({"status": 401}, 502, "upstream_failed"),
    "403": ({"status": 403}, 502, "upstream_failed"),
    "404": ({"status": 404}, 502, "upstream_failed"),
    "422": ({"status": 422}, 422, "invalid_request"),
    "500": ({"status": 500}, 502, "upstream_failed"),
    "500 in HTML": ({"status": 500, "body": "html"}, 502, "upstream_failed"),
    "500 in plain text": ({"status": 500, "body": "text"}, 502, "upstream_failed"),
    "500 without a body": ({"status": 500, "body": "empty"}, 502, "upstream_failed"),
    "501": ({"status": 501}, 501, "unsupported"),
}


def ask_chat(gateway: Gateway, mode: str, *, model: str = "one", request_id: str | None = None) -> Reply:
    return post(gateway, CHAT, chat(model=model, **MODES[mode]), **{"x-request-id": request_id or new_id()})


def shut(fake: FakeLlama, door: str, **options: object) -> None:
    """Nobody can connect, and the connections that there are break when they are used."""
    fake.fault("reset_on_reuse", path="*")
    fake.fault(door, **options)


def served(fake: FakeLlama) -> int:
    """How many chats it has answered to the end."""
    return sum(request["ended"] == "complete" for request in fake.requests(CHAT))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PASSING)
def test_what_fails_before_the_first_byte_is_tried_again(front: Front, name: str, mode: str) -> None:
    gateway, fake, (fault, reason), request_id = front.gateway, front.one, PASSING[name], new_id()
    expected = text_of(ask_chat(gateway, mode))
    before = gateway.metric("corral_retries_total", model="one", reason=reason)
    fake.reset()
    fake.fault(**fault, times=1)
    reply = ask_chat(gateway, mode, request_id=request_id)
    assert reply.status == 200
    assert text_of(reply) == expected
    assert len(fake.requests(CHAT)) == 2
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"], record["attempts"]) == (200, "ok", 2)
    assert gateway.metric("corral_retries_total", model="one", reason=reason) == before + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STAYING)
def test_what_would_fail_again_is_not_tried_again(front: Front, name: str, mode: str) -> None:
    gateway, fake, (fault, status, code), request_id = front.gateway, front.one, STAYING[name], new_id()
    fake.fault("status", **fault)
    reply = ask_chat(gateway, mode, request_id=request_id)
    assert (reply.status, error_of(reply)["code"]) == (status, code)
    assert "<html>" not in error_of(reply)["message"]
    assert len(fake.requests(CHAT)) == 1
    record = record_of(gateway, request_id)
    outcome = "upstream_error" if status == 502 else "refused"
    assert (record["status"], record["outcome"], record["error_code"]) == (status, outcome, code)


@pytest.mark.parametrize("mode", MODES)
def test_an_upstream_that_goes_on_failing_is_given_up_after_the_last_attempt(front: Front, mode: str) -> None:
    gateway, fake, request_id = front.gateway, front.one, new_id()
    fake.fault("status", status=503, body="html")
    reply = ask_chat(gateway, mode, request_id=request_id)
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_failed")
    assert len(fake.requests(CHAT)) == 3
    assert record_of(gateway, request_id)["attempts"] == 3


@pytest.mark.parametrize("status", [429, 503])
def test_the_pause_is_as_long_as_the_upstream_asks_for(front: Front, status: int) -> None:
    front.one.fault("status", status=status, retry_after="2", times=1)
    assert ask_chat(front.gateway, "gathered").status == 200
    first, second = front.one.requests(CHAT)
    assert second["received_at"] - first["received_at"] >= 2


def test_an_upstream_that_asks_for_more_time_than_there_is_gets_no_second_attempt(front: Front) -> None:
    front.one.fault("status", status=503, retry_after="120")
    reply = ask_chat(front.gateway, "gathered")
    assert reply.status == 502
    assert reply.headers["retry-after"] == "120"
    assert len(front.one.requests(CHAT)) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("door", ["refuse", "connect_hang"])
def test_a_request_outlives_an_upstream_that_is_down_for_a_moment(front: Front, door: str, mode: str) -> None:
    request_id = new_id()
    shut(front.one, door, seconds=0.3)
    assert ask_chat(front.gateway, mode, request_id=request_id).status == 200
    assert served(front.one) == 1
    assert record_of(front.gateway, request_id)["attempts"] <= 2


def test_an_upstream_that_is_down_is_a_503_which_names_no_address(front: Front) -> None:
    shut(front.one, "refuse")
    reply = ask_chat(front.gateway, "stream")
    error = error_of(reply)
    assert (reply.status, error["code"]) == (503, "model_not_ready")
    assert int(reply.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in error["message"]
    assert str(front.one.port) not in error["message"]


def test_a_connection_that_is_reset_on_its_second_use_costs_no_attempt(front: Front) -> None:
    ids = [new_id(), new_id()]
    front.one.fault("reset_on_reuse")
    assert [ask_chat(front.gateway, "whole", request_id=each).status for each in ids] == [200, 200]
    assert served(front.one) == 2
    assert len(front.one.requests(CHAT)) > 2
    assert [record_of(front.gateway, each)["attempts"] for each in ids] == [1, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["loading", "503 for long", "RST", "half a head", "not HTTP", "wrong content type"])
def test_a_second_replica_takes_over_at_once_from_one_that_fails(front: Front, name: str, mode: str) -> None:
    front.left.fault(**ELSEWHERE[name])
    # The replica that has served less comes first, which is the one that fails, sooner or later.
    for _ in range(50):
        request_id = new_id()
        assert ask_chat(front.gateway, mode, model="two", request_id=request_id).status == 200
        record = record_of(front.gateway, request_id)
        assert record["replica"] == "two/1"
        if record["attempts"] > 1:
            break
    assert record["attempts"] == 2
    (failed,) = front.left.requests(CHAT)
    assert front.right.requests(CHAT)[-1]["body"] == failed["body"]


@pytest.mark.parametrize("mode", MODES)
def test_a_replica_that_is_down_is_passed_over(front: Front, mode: str) -> None:
    shut(front.left, "refuse")
    assert [ask_chat(front.gateway, mode, model="two").status for _ in range(3)] == [200] * 3
    assert (served(front.left), served(front.right)) == (0, 3)


@pytest.mark.parametrize("mode", MODES)
def test_a_request_waits_for_a_model_that_is_loading(front: Front, mode: str) -> None:
    request_id = new_id()
    front.one.fault("loading", path="*", times=4)
    assert ask_chat(front.gateway, mode, request_id=request_id).status == 200
    assert record_of(front.gateway, request_id)["attempts"] <= 2


def test_a_part_of_a_large_request_is_tried_again_by_itself(fake: FakeLlama, gateway: Gateway) -> None:
    fake.fault("reset", skip=1, times=1)
    reply = post(gateway, EMBEDDINGS, {"model": "one", "input": [f"input {i}" for i in range(6)]})
    assert reply.status == 200
    assert [item["index"] for item in reply.json["data"]] == list(range(6))
    sent = [text for request in fake.requests(EMBEDDINGS) for text in request["body"]["input"]]
    assert sorted(sent) == sorted([*(f"input {i}" for i in range(6)), "input 1"])


def test_a_part_that_fails_for_good_ends_the_whole(fake: FakeLlama, gateway: Gateway) -> None:
    request_id = new_id()
    fake.fault("status", status=500, skip=2)
    body = {"model": "one", "input": [f"input {i}" for i in range(40)]}
    reply = post(gateway, EMBEDDINGS, body, **{"x-request-id": request_id})
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_failed")
    assert len(fake.requests(EMBEDDINGS)) <= 4
    assert record_of(gateway, request_id)["outcome"] == "upstream_error"
