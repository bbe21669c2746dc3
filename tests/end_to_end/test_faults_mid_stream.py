"""Upstreams that fail within a reply: what the matrix of faults does not say of them."""

import pytest

from support.front import Front
from support.gateway import Gateway
from support.raw_client import Reply
from support.talk import (
    CHAT,
    DONE,
    MODES,
    chat,
    error_of,
    new_id,
    post,
)


def ask(gateway: Gateway, mode: str, *, request_id: str | None = None) -> Reply:
    return post(gateway, CHAT, chat(**MODES[mode]), **{"x-request-id": request_id or new_id()})


def test_an_error_before_the_first_token_is_told_by_the_status(front: Front) -> None:
    front.one.fault("error_event", after=1)
    reply = ask(front.gateway, "stream")
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_failed")
    assert "text/event-stream" not in reply.headers["content-type"]


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
