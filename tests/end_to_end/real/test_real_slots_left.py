"""Of two busy slots one is left: it is free soon, not given away before, and the other client notices nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from corral.upstream.argv import PROMPT_BATCH
from support.embedded_engine import EmbeddedEngine
from support.gateway import KEY, PATIENCE_S, Gateway
from support.models import smollm2
from support.raw_client import RawClient

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
STORY = [{"role": "user", "content": "Tell me a long story."}]
# More than is generated while a test lasts.
STORY_TOKENS = 3000
# A token a word: many batches, of which few are to be read for one who has left.
PROMPT_WORDS = 1200

WAYS: dict[str, dict[str, Any]] = {
    "stream": {"stream": True, "max_tokens": STORY_TOKENS},
    "gathered": {"max_tokens": STORY_TOKENS},
    "few tokens": {"max_tokens": 16},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    """With the batch that Corral gives its own llama-servers; two slots of 4096 tokens."""
    batch = str(PROMPT_BATCH)
    with EmbeddedEngine(smollm2(), "-b", batch, "-ub", batch, context=2 * 4096) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared_corral(engine: EmbeddedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("left"), MODEL_UPSTREAMS=f"smol={engine.url}") as gateway:
        gateway.until_ready()
        yield gateway


@contextmanager
def storyteller(corral: Gateway) -> Iterator[Iterator[str]]:
    """The lines of a stream that occupies a slot; it has to go on when the block ends."""
    body = {"model": "smol", "messages": STORY, "max_tokens": STORY_TOKENS, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", corral.url + CHAT, json=body, headers=headers, timeout=PATIENCE_S) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data: "))
        assert next(lines).startswith('data: {"choices"')
        yield lines


def begun(corral: Gateway, body: dict[str, Any]) -> RawClient:
    client = RawClient(corral.port)
    client.send("POST", CHAT, body, authorization=f"Bearer {KEY}", **{"content-type": "application/json"})
    return client


def slots(engine: EmbeddedEngine) -> dict[int, dict[str, Any]]:
    """What /slots says of each task that is being worked on."""
    return {slot["id_task"]: slot for slot in engine.get("/slots").json() if slot["is_processing"]}


def second_task(engine: EmbeddedEngine, others: set[int], *, generates: bool) -> int:
    """The task that is not one of ``others``, once it has read something, or generated."""
    found: set[int] = set()

    def there() -> bool:
        for task, slot in slots(engine).items():
            begun = slot["next_token"][0]["n_decoded"] if generates else slot["n_prompt_tokens_processed"]
            if task not in others and begun:
                found.add(task)
        return bool(found)

    engine.until(there, "busy in the second slot")
    return found.pop()


def held(corral: Gateway) -> float:
    return corral.metric("corral_slots_busy") + corral.metric("corral_slots_lingering")


def assert_freed(corral: Gateway, engine: EmbeddedEngine, task: int) -> list[int]:
    """Corral counts the slot until it is free, and then no longer; how much of the prompt was read, look by look."""
    read: list[int] = []

    def given_back() -> bool:
        if held(corral) > 1:
            running = slots(engine).get(task)
            read.extend([running["n_prompt_tokens_processed"]] if running else [])
            return False
        return True

    corral.until(given_back, "without the slot that was left")
    # Asked after Corral has given it back.
    assert task not in slots(engine)
    return read


def assert_goes_on(lines: Iterator[str], engine: EmbeddedEngine) -> None:
    """The other client gets more than had been generated for it when the slot was left: an event is a token or more."""
    (storyteller,) = slots(engine).values()
    for _ in range(storyteller["next_token"][0]["n_decoded"] + 1):
        line = next(lines)
        assert '"finish_reason":null' in line, line


@pytest.mark.parametrize("way", ["stream", "gathered"])
def test_who_leaves_while_generating_frees_the_slot(corral: Gateway, engine: EmbeddedEngine, way: str) -> None:
    with storyteller(corral) as lines:
        others = set(slots(engine))
        with begun(corral, {"model": "smol", "messages": STORY, "ignore_eos": True, **WAYS[way]}):
            task = second_task(engine, others, generates=True)
        assert_freed(corral, engine, task)
        assert_goes_on(lines, engine)


@pytest.mark.parametrize("way", list(WAYS))
def test_who_leaves_during_a_long_prompt_frees_the_slot_long_before_it_is_read(
    corral: Gateway, engine: EmbeddedEngine, way: str
) -> None:
    # Nothing of it is cached.
    prompt = [{"role": "user", "content": f"{way} {'horse ' * PROMPT_WORDS}"}]
    with storyteller(corral) as lines:
        others = set(slots(engine))
        with begun(corral, {"model": "smol", "messages": prompt, **WAYS[way]}):
            task = second_task(engine, others, generates=False)
        assert max(assert_freed(corral, engine, task), default=0) < PROMPT_WORDS / 2
        assert_goes_on(lines, engine)
