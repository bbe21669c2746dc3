"""Two real llama.cpp of one model: conversations stay where they are cached, and a flood keeps nobody waiting."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.embedded_engine import EmbeddedEngine
from support.gateway import Gateway
from support.models import smollm2

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
RULES = "You answer riders in a stable, and you are brief. Rule {}: a horse has a name, a colour and a gate. "

YAML = "models: [{{name: smol, upstreams: ['{}', '{}']}}]"


@pytest.fixture(scope="module")
def pair(engine: EmbeddedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("pair")
    with EmbeddedEngine(smollm2()) as other:
        (directory / "corral.yaml").write_text(YAML.format(engine.url, other.url))
        with Gateway(directory, OPENAI_API_KEYS="key-of-flood:flood,key-of-guest:guest") as gateway:
            gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 2, "both ready")
            yield gateway


def talk(system: str, *said: str) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    return [{"role": "system", "content": system}, *turns]


def ask(gateway: Gateway, messages: list[dict[str, str]], *, key: str = "local", **fields: Any) -> Any:
    body = {"model": "smol", "messages": messages, "max_tokens": 12, "temperature": 0, **fields}
    reply = gateway.post(CHAT, body, key=key)
    assert reply.status_code == 200, reply.text
    return reply


def test_each_conversation_is_read_once(pair: Gateway) -> None:
    systems = ["".join(RULES.format(f"{number}.{rule}") for rule in range(8)) for number in range(3)]
    said = {system: ["Which horse is mine?"] for system in systems}
    homes: dict[str, str] = {}
    for turn in range(3):
        for system in systems:
            reply = ask(pair, talk(system, *said[system]))
            home = homes.setdefault(system, reply.headers["x-corral-replica"])
            assert reply.headers["x-corral-replica"] == home
            usage = reply.json()["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            if turn:
                assert cached > 0.7 * usage["prompt_tokens"]
            said[system] += [reply.json()["choices"][0]["message"]["content"], "And where is its gate?"]
    assert len(set(homes.values())) == 2
    foreseen = pair.metric("corral_prefix_tokens_total", kind="foreseen")
    # llama-server has the last answer in its cache, too, of which nobody can know.
    assert 0 < foreseen <= pair.metric("corral_prefix_tokens_total", kind="cached")


def test_a_flood_keeps_nobody_waiting(pair: Gateway) -> None:
    flood = talk("You tell long stories.", "Tell me of horses.")
    with ThreadPoolExecutor(10) as threads:
        first = [threads.submit(ask, pair, flood, key="key-of-flood", max_tokens=60) for _ in range(10)]
        pair.until(lambda: pair.metric("corral_queue_waiters") == 6, "waited for by six")
        ask(pair, flood, key="key-of-guest")
        # The line of an exchange may be written after its answer.
        pair.until(lambda: "guest" in clients(pair), "the guest's line")
        served = clients(pair)
        for future in first:
            future.result()
    # The guest is served with the next slot; those who held one when it came may end before it, and as many more
    # may have begun and ended as there are other slots.
    assert served.index("guest") <= 4 + 3


def clients(pair: Gateway) -> list[str]:
    """Whose exchanges have ended, in that order."""
    return [record["client"] for record in pair.records() if record["client"] in ("flood", "guest")]


def test_a_prompt_that_fits_nowhere_is_refused_by_corral(pair: Gateway) -> None:
    body = {"model": "smol", "messages": talk("", "horse " * 5000), "max_tokens": 5}
    before = pair.metric("corral_upstream_attempts_total")
    reply = pair.post(CHAT, body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert pair.metric("corral_upstream_attempts_total") == before


@pytest.mark.parametrize("words", [200, 700, 1000])
def test_what_llama_cpp_takes_is_never_refused(pair: Gateway, engine: EmbeddedEngine, words: int) -> None:
    """Its slots have 1024 tokens."""
    text = "horse " * words
    fits = len(engine.tokens(text)) < 950
    reply = pair.post(CHAT, {"model": "smol", "messages": talk("", text), "max_tokens": 2})
    assert (reply.status_code == 200) or not fits
    if reply.status_code != 200:
        assert reply.json()["error"]["code"] == "context_length_exceeded"
