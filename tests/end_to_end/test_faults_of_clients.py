"""Clients that leave: what becomes of their place, their slot, and the parts of their request."""

from typing import Any

import pytest

from support.door import lane_only
from support.fake import FakeLlama
from support.front import Narrow
from support.gateway import KEY, Gateway
from support.matrix import CLOSED_WITHIN_S, closed_at, now
from support.raw_client import RawClient
from support.spelled import NarrowClient
from support.talk import CHAT, EMBEDDINGS, MODES, begin, chat, credentials, new_id, post, record_of

STREAMED = ["gathered", "stream"]
# Goes on until somebody ends it.
LONG = 'script:{"count": 100000}'
# More than is read of a body before somebody asks for it, and less than is read in one go.
LARGE_BYTES = 100_000


def begin_chat(gateway: Gateway, mode: str, request_id: str, content: str = "hello") -> RawClient:
    fields = MODES[mode] if content != LONG else MODES[mode] | {"max_tokens": 100_000}
    return begin(gateway, CHAT, chat(content, **fields), **{"x-request-id": request_id})


def assert_gone(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The exchange has ended because its client left; its record is returned."""
    record = record_of(gateway, request_id)
    assert (record["status"], record["outcome"], record["error_code"]) == (499, "client_gone", None)
    return record


def assert_noticed(fake: FakeLlama) -> None:
    """The upstream saw the end of the connection, and stopped."""
    assert [request["ended"] for request in fake.until_ended(CHAT)] == ["client_gone"]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_the_queue_gives_its_place_to_the_next(narrow: Narrow, mode: str) -> None:
    gateway, left, stayed = narrow.gateway, new_id(), new_id()
    with narrow.occupied():
        with begin_chat(gateway, mode, left):
            narrow.until_waiting(1)
        assert_gone(gateway, left)
        narrow.until_waiting(0)
        assert len(narrow.fake.requests(CHAT)) == 1
        second = begin_chat(gateway, mode, stayed)
        narrow.until_waiting(1)
    assert second.receive().status == 200
    second.close()
    assert len(narrow.fake.requests(CHAT)) == 2
    assert record_of(gateway, stayed)["outcome"] == "ok"


def test_a_client_that_leaves_between_the_parts_of_its_request(narrow: Narrow) -> None:
    gateway, fake, request_id = narrow.gateway, narrow.fake, new_id()
    fake.set(prefill_s=0.1)
    body = {"model": "one", "input": [f"input {i}" for i in range(100)]}
    with begin(gateway, EMBEDDINGS, body, **{"x-request-id": request_id}):
        gateway.until(lambda: len(fake.requests(EMBEDDINGS)) >= 3, "at the third part")
    assert_gone(gateway, request_id)
    gateway.until_idle()
    assert len(fake.requests(EMBEDDINGS)) < 100


def test_a_slot_that_was_given_up_is_counted_until_it_is_free(narrow: Narrow) -> None:
    gateway, fake, left, stayed = narrow.gateway, narrow.fake, new_id(), new_id()
    # One step for the whole prompt: nobody is listened to before its end.
    fake.set(prefill_s=2)
    with begin_chat(gateway, "stream", left):
        fake.until(lambda state: state["processing"] == 1)
    assert_gone(gateway, left)
    assert gateway.metric("corral_slots_lingering") == 1
    fake.set(prefill_s=0)
    with begin_chat(gateway, "stream", stayed) as second:
        narrow.until_waiting(1)
        assert len(fake.requests(CHAT)) == 1
        assert second.receive().events[-1] == "[DONE]"
    assert gateway.metric("corral_slots_lingering") == 0
    assert record_of(gateway, stayed)["queue_wait_ms"] > 0
    assert fake.state()["most_deferred"] == 0


def test_nobody_is_blamed_for_a_client_that_leaves(narrow: Narrow) -> None:
    gateway = narrow.gateway
    transitions = gateway.metric("corral_replica_transitions_total")
    narrow.fake.set(token_s=0.02)
    for _ in range(5):
        request_id = new_id()
        with begin_chat(gateway, "stream", request_id, LONG) as client:
            client.receive(until=b'"content"')
        assert_gone(gateway, request_id)
    assert gateway.metric("corral_replica_transitions_total") == transitions
    narrow.fake.set(token_s=0)
    assert post(gateway, CHAT, chat(max_tokens=30)).status == 200


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_after_a_large_body_is_noticed_at_once(narrow: Narrow, mode: str) -> None:
    gateway, fake, request_id = narrow.gateway, narrow.fake, new_id()
    fake.set(prefill_s=2)
    # All of it is there before anybody asks for it.
    with gateway.held():
        client = begin_chat(gateway, mode, request_id, "x" * LARGE_BYTES)
    fake.until(lambda state: state["processing"] == 1)
    left_at = now()
    client.close()
    assert_gone(gateway, request_id)
    assert closed_at(fake, CHAT, 0) < left_at + CLOSED_WITHIN_S


@lane_only
@pytest.mark.parametrize("mode", MODES)
def test_an_answer_to_a_connection_that_has_just_been_reset_is_no_success(narrow: Narrow, mode: str) -> None:
    """The reply comes, then the reset, and the gateway sees both in one moment."""
    gateway, request_id = narrow.gateway, new_id()
    narrow.fake.set(prefill_s=0.2)
    with begin_chat(gateway, mode, request_id) as client:
        narrow.fake.until(lambda state: state["processing"] == 1)
        with gateway.held():
            assert [request["ended"] for request in narrow.fake.until_ended(CHAT)] == ["complete"]
            client.reset()
    assert_gone(gateway, request_id)


@pytest.mark.parametrize("mode", STREAMED)
def test_who_does_not_take_an_answer_that_is_complete_has_not_been_served(narrow: Narrow, mode: str) -> None:
    request_id = new_id()
    narrow.fake.fault("huge", after=5, size=5_000_000)
    with NarrowClient(narrow.gateway.port) as client:
        client.send("POST", CHAT, chat(**MODES[mode]), **credentials(KEY, **{"x-request-id": request_id}))
        assert_gone(narrow.gateway, request_id)
