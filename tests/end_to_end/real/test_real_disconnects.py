"""A client that leaves takes its work with it, in every phase."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from support.embedded_engine import EmbeddedEngine
from support.gateway import KEY, PATIENCE_S, Gateway

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
# Far more than is generated before anyone notices.
LONG_TOKENS = 900


def body(**more: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": "Tell me a long story."}]
    return {"model": "smol", "messages": talk, "max_tokens": LONG_TOKENS, "ignore_eos": True, **more}


def opened(corral: Gateway, asked: dict[str, Any]) -> socket.socket:
    """A connection that has sent a chat and waits for what comes."""
    content = json.dumps(asked).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: corral\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", corral.port), timeout=PATIENCE_S)
    client.sendall(head.encode() + content)
    return client


@pytest.fixture
def generated(engine: EmbeddedEngine) -> Iterator[None]:
    """The engine becomes idle in time, and has generated far less than was asked for."""
    before = engine.metric("tokens_predicted_total")
    yield
    engine.until(lambda: engine.busy() == 0, "idle")
    assert engine.metric("tokens_predicted_total") - before < LONG_TOKENS / 2


def assert_left(corral: Gateway, before: int, count: int = 1) -> None:
    corral.until(lambda: len(corral.records()) == before + count, "done")
    for record in corral.records()[before:]:
        assert (record["status"], record["outcome"]) == (499, "client_gone")


@pytest.mark.usefixtures("generated")
def test_a_stream_that_is_left_stops(corral: Gateway) -> None:
    before = len(corral.records())
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", corral.url + CHAT, json=body(stream=True), headers=headers, timeout=PATIENCE_S) as reply:
        lines = reply.iter_lines()
        assert [next(lines).startswith("data: {"), next(lines)] == [True, ""]
    assert_left(corral, before)
    record = corral.records()[-1]
    assert record["estimated"]
    assert 0 < record["completion_tokens"] < LONG_TOKENS / 2


@pytest.mark.usefixtures("generated")
def test_a_reply_that_is_left_while_it_is_gathered_stops(corral: Gateway, engine: EmbeddedEngine) -> None:
    before = len(corral.records())
    with closing(opened(corral, body())):
        engine.until(engine.busy, "busy")
    assert_left(corral, before)
    assert corral.records()[-1]["attempts"] == 1


@pytest.mark.usefixtures("generated")
def test_who_leaves_the_queue_is_never_sent_to_an_engine(corral: Gateway, engine: EmbeddedEngine) -> None:
    before = len(corral.records())
    with closing(opened(corral, body())), closing(opened(corral, body(stream=True))):
        engine.until(lambda: engine.busy() == 2, "busy in both slots")
        with closing(opened(corral, body())):
            corral.until(lambda: corral.metric("corral_queue_waiters") == 1, "waited for")
        assert_left(corral, before)
        assert corral.records()[-1]["attempts"] == 0
    assert_left(corral, before, count=3)


@pytest.mark.usefixtures("generated")
def test_a_slot_that_is_left_while_it_reads_its_prompt_is_not_given_away_too_early(
    corral: Gateway, engine: EmbeddedEngine
) -> None:
    before = len(corral.records())
    prompt = [{"role": "user", "content": "horse " * 500}]
    with closing(opened(corral, body(messages=prompt, stream=True))):
        engine.until(engine.busy, "busy")
    assert_left(corral, before)
    short = body(max_tokens=2)
    for _ in range(3):
        assert corral.post(CHAT, short).status_code == 200
        assert engine.metric("requests_deferred") == 0
