"""Upstreams that fail before the first byte: what the matrix of faults does not say of them."""

import pytest

from support.fake import FakeLlama
from support.front import Front
from support.gateway import Gateway
from support.raw_client import Reply
from support.talk import CHAT, EMBEDDINGS, MODES, chat, error_of, new_id, post, record_of


def ask_chat(gateway: Gateway, mode: str, *, model: str = "one", request_id: str | None = None) -> Reply:
    return post(gateway, CHAT, chat(model=model, **MODES[mode]), **{"x-request-id": request_id or new_id()})


def shut(fake: FakeLlama, door: str, **options: object) -> None:
    """Nobody can connect, and the connections that there are break when they are used."""
    fake.fault("reset_on_reuse", path="*")
    fake.fault(door, **options)


@pytest.mark.parametrize("status", [429, 503])
def test_the_pause_is_as_long_as_the_upstream_asks_for(front: Front, status: int) -> None:
    front.one.fault("status", status=status, retry_after="2", times=1)
    assert ask_chat(front.gateway, "gathered").status == 200
    first, second = front.one.requests(CHAT)
    assert second["received_at"] - first["received_at"] >= 2


def test_an_upstream_that_is_down_is_a_503_which_names_no_address(front: Front) -> None:
    shut(front.one, "refuse")
    reply = ask_chat(front.gateway, "stream")
    error = error_of(reply)
    assert (reply.status, error["code"]) == (503, "model_not_ready")
    assert int(reply.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in error["message"]
    assert str(front.one.port) not in error["message"]


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
