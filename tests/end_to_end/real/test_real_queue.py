"""Whoever waits, waits in Corral: llama-server never has more to do than it has slots."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from support.embedded_engine import EmbeddedEngine
from support.gateway import Gateway

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
EMBED = "/v1/embeddings"
INPUTS = [f"horse number {number}" for number in range(64)]


class Deferred:
    """What llama-server says of its own queue, asked again and again. One writer: its thread."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.samples: list[float] = []
        self._engine = engine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.samples.append(self._engine.metric("requests_deferred"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def chat(corral: Gateway, tokens: int, **more: Any) -> httpx.Response:
    talk = [{"role": "user", "content": "Tell me of horses."}]
    return corral.post(CHAT, {"model": "smol", "messages": talk, "max_tokens": tokens, "ignore_eos": True, **more})


def test_seven_clients_share_two_slots_and_none_waits_inside(
    corral: Gateway, engine: EmbeddedEngine, pool: ThreadPoolExecutor
) -> None:
    deferred = Deferred(engine)
    with deferred.watched():
        first = [pool.submit(chat, corral, 120, stream=streams) for streams in (True, False)]
        engine.until(lambda: engine.busy() == 2, "busy in both slots")
        others = [pool.submit(chat, corral, 20, stream=number % 2 == 0) for number in range(5)]
        corral.until(lambda: corral.metric("corral_queue_waiters") == 5, "waited for by five")
        assert corral.metric("corral_slots_busy") == 2
        assert [future.result().status_code for future in (*first, *others)] == [200] * 7
    assert len(deferred.samples) > 2
    assert set(deferred.samples) == {0}


def test_a_chat_is_not_held_up_by_a_large_embeddings_call(
    corral: Gateway, engine: EmbeddedEngine, pool: ThreadPoolExecutor
) -> None:
    before = len(corral.records())
    deferred = Deferred(engine)
    with deferred.watched():
        large = pool.submit(corral.post, EMBED, {"model": "smol", "input": INPUTS})
        engine.until(engine.busy, "busy with embeddings")
        assert chat(corral, 4).status_code == 200
        vectors = large.result().json()
    assert set(deferred.samples) == {0}
    corral.until(lambda: len(corral.records()) == before + 2, "done with both")
    assert [record["route"] for record in corral.records()[before:]] == ["chat", "embeddings"]
    assert [each["index"] for each in vectors["data"]] == list(range(64))
    assert vectors["usage"]["prompt_tokens"] == sum(len(engine.tokens(text)) for text in INPUTS)
    for number in range(0, 64, 9):
        (alone,) = engine.post(EMBED, {"input": INPUTS[number]})["data"]
        assert vectors["data"][number]["embedding"] == pytest.approx(alone["embedding"], abs=2e-3)
