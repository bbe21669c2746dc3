"""The queue over the wire: a flood does not keep others waiting, classes go in their order."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import until_waiting
from support.gateway import Gateway
from support.raw_client import RawClient
from support.talk import CHAT, begin, chat, error_of, post

SETTINGS = {
    "OPENAI_API_KEYS": "key-of-flood:flood,key-of-guest:guest,key-of-desk:desk,key-of-night:night",
    "CORRAL_LIMITS_REQUESTS": "0",
    "CORRAL_QUEUE_INTERACTIVE": "desk",
    "CORRAL_QUEUE_BATCH": "night",
    "CORRAL_QUEUE_PER_CLIENT": "8",
}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def whole_gateway(fake: FakeLlama, door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = SETTINGS | {"MODEL_UPSTREAMS": f"one={fake.url}"}
    with Gateway(tmp_path_factory.mktemp("fair"), door=door, check_idle=True, **settings) as gateway:
        yield gateway


@pytest.fixture
def gateway(whole_gateway: Gateway, fake: FakeLlama) -> Iterator[Gateway]:
    fake.reset()
    whole_gateway.until_ready()
    yield whole_gateway
    whole_gateway.until_idle()


@contextmanager
def occupied(gateway: Gateway, fake: FakeLlama) -> Iterator[None]:
    """The slot is held by a stream of the flood's, whose client leaves with the block."""
    fake.set(token_s=0.02)
    body = chat('script:{"count": 100000}', max_tokens=100_000, stream=True)
    with begin(gateway, CHAT, body, key="key-of-flood") as holder:
        holder.receive(until=b'"content"')
        yield
        fake.set(token_s=0.001)


def queued(gateway: Gateway, *clients: str) -> list[RawClient]:
    """One request of each, in this order; they wait."""
    waiting: list[RawClient] = []
    for client in clients:
        waiting.append(begin(gateway, CHAT, chat(client, max_tokens=20), key=f"key-of-{client}"))
        until_waiting(gateway, len(waiting))
    return waiting


def served(fake: FakeLlama, waiting: list[RawClient]) -> list[str]:
    """Whose requests were served, in the order in which llama-server got them."""
    for client in waiting:
        assert client.receive().status == 200
        client.close()
    return [request["body"]["messages"][0]["content"] for request in fake.requests(CHAT)][1:]


def test_a_flood_keeps_nobody_waiting(gateway: Gateway, fake: FakeLlama) -> None:
    with occupied(gateway, fake):
        waiting = queued(gateway, *["flood"] * 8, "guest")
        # It has filled its part of the queue, and there is room for others.
        reply = post(gateway, CHAT, chat("flood", max_tokens=20), key="key-of-flood")
        assert (reply.status, error_of(reply)["code"]) == (503, "queue_full")
        assert "of this client" in error_of(reply)["message"]
    assert served(fake, waiting) == ["guest", *["flood"] * 8]


def test_classes_go_in_their_order(gateway: Gateway, fake: FakeLlama) -> None:
    with occupied(gateway, fake):
        waiting = queued(gateway, "night", "guest", "desk", "night", "desk")
        told = {
            priority: gateway.metric("corral_queue_waiters", priority=priority)
            for priority in ("interactive", "default", "batch")
        }
        assert told == {"interactive": 2, "default": 1, "batch": 2}
    assert served(fake, waiting) == ["desk", "desk", "guest", "night", "night"]
    assert {record["priority"] for record in gateway.records()} >= {"interactive", "default", "batch"}
