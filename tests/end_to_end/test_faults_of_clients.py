"""Clients that leave, in every phase: nobody works for them any longer, and their exchange says that they left."""

import socket
from typing import Any

import pytest

from support.fake import FakeLlama
from support.front import Narrow
from support.gateway import Gateway
from support.raw_client import RawClient
from support.talk import CHAT, EMBEDDINGS, MODES, begin, chat, new_id, post, record_of

STREAMED = ["gathered", "stream"]
# Goes on until somebody ends it.
LONG = 'script:{"count": 100000}'


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


def test_a_client_that_leaves_while_it_sends_its_body(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    with RawClient(gateway.port) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer local\r\nX-Request-Id: {request_id}\r\n"
        client.socket.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"model":'.encode())
        gateway.until(lambda: gateway.metric("corral_exchanges_in_flight") == 1, "in flight")
    assert_gone(gateway, request_id)
    assert narrow.fake.requests(CHAT) == []


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


def test_a_client_that_leaves_while_corral_connects(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    narrow.fake.fault("reset_on_reuse", path="*")
    narrow.fake.fault("connect_hang")
    with begin_chat(gateway, "stream", request_id):
        gateway.until(lambda: gateway.metric("corral_slots_busy") == 1, "connecting")
    assert_gone(gateway, request_id)
    narrow.fake.clear_faults()


@pytest.mark.parametrize("mode", STREAMED)
def test_a_client_that_leaves_before_the_first_token(narrow: Narrow, mode: str) -> None:
    gateway, request_id = narrow.gateway, new_id()
    # The prompt is read in small steps, as Corral's own llama-servers do.
    narrow.fake.set(prefill_s=60, n_batch=1)
    content = " ".join(["word"] * 1000)
    with begin_chat(gateway, mode, request_id, content):
        narrow.fake.until(lambda state: state["processing"] == 1)
    assert assert_gone(gateway, request_id)["ttft_ms"] is None
    assert_noticed(narrow.fake)


def test_a_client_that_leaves_in_mid_stream(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    narrow.fake.set(token_s=0.02)
    with begin_chat(gateway, "stream", request_id, LONG) as client:
        client.receive(until=b'"content"')
    record = assert_gone(gateway, request_id)
    assert record["completion_tokens"] > 0
    assert record["estimated"]
    assert_noticed(narrow.fake)


def test_a_client_that_leaves_while_its_reply_is_gathered(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    narrow.fake.set(token_s=0.02)
    with begin_chat(gateway, "gathered", request_id, LONG):
        gateway.until(lambda: [each for each in narrow.fake.requests(CHAT) if each["writes"] > 10], "being gathered")
    assert assert_gone(gateway, request_id)["estimated"]
    assert_noticed(narrow.fake)


def test_a_client_that_leaves_a_reply_that_comes_whole(narrow: Narrow) -> None:
    """The llama-server does not notice; its connection is closed and its slot counted until it is done."""
    gateway, request_id = narrow.gateway, new_id()
    narrow.fake.set(token_s=0.1)
    with begin_chat(gateway, "whole", request_id):
        narrow.fake.until(lambda state: state["processing"] == 1)
    assert_gone(gateway, request_id)
    (request,) = narrow.fake.until_ended(CHAT)
    assert request["left_at"] is not None


def test_a_client_that_leaves_between_the_parts_of_its_request(narrow: Narrow) -> None:
    gateway, fake, request_id = narrow.gateway, narrow.fake, new_id()
    fake.set(prefill_s=0.1)
    body = {"model": "one", "input": [f"input {i}" for i in range(100)]}
    with begin(gateway, EMBEDDINGS, body, **{"x-request-id": request_id}):
        gateway.until(lambda: len(fake.requests(EMBEDDINGS)) >= 3, "at the third part")
    assert_gone(gateway, request_id)
    gateway.until_idle()
    assert len(fake.requests(EMBEDDINGS)) < 100


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_during_a_pause_between_attempts(narrow: Narrow, mode: str) -> None:
    gateway, request_id = narrow.gateway, new_id()
    before = gateway.metric("corral_retries_total")
    narrow.fake.fault("status", status=503, retry_after="25")
    with begin_chat(gateway, mode, request_id):
        gateway.until(lambda: gateway.metric("corral_retries_total") == before + 1, "tried again")
    assert assert_gone(gateway, request_id)["attempts"] == 1


def test_a_client_that_shuts_its_side_has_left(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    narrow.fake.set(token_s=0.02)
    with begin_chat(gateway, "stream", request_id, LONG) as client:
        client.receive(until=b'"content"')
        client.socket.shutdown(socket.SHUT_WR)
        assert_gone(gateway, request_id)
    assert_noticed(narrow.fake)


def test_a_client_that_stops_reading_is_cut_off(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    # Together more than the buffers of four sockets hold.
    for after in range(5, 45):
        narrow.fake.fault("huge", after=after, size=2_000_000)
    with begin_chat(gateway, "stream", request_id, LONG):
        assert assert_gone(gateway, request_id)["bytes_out"] < 40_000_000
    assert_noticed(narrow.fake)


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
