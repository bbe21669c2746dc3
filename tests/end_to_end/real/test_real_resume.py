"""A real llama.cpp is killed in the middle of an answer, and another one goes on with the very text."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.embedded_engine import EmbeddedEngine
from support.gateway import Gateway
from support.models import smollm2
from support.raw_client import Reply
from support.talk import CHAT, COMPLETIONS, DONE, begin, new_id, record_of

pytestmark = pytest.mark.engine

TEMPLATE = Path(__file__).parent / "tools.jinja"
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
USER = {"role": "user", "content": "Write a few sentences about horses and rivers."}
# Thoughts that are begun: this model has none of its own.
THINKING = {"role": "assistant", "content": "", "reasoning_content": "The user wants to know of horses. They are"}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat": (CHAT, {"messages": [SYSTEM, USER]}),
    "thoughts": (CHAT, {"messages": [SYSTEM, USER, THINKING]}),
    "a completion": (COMPLETIONS, {"prompt": "Once upon a time there was a horse that"}),
}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
# So many, that of a text with line ends, which may be spelled in several ways, none comes.
TOKENS = 40
TURNS = 5


def engine(*arguments: str) -> EmbeddedEngine:
    """One slot, and prompts read in steps of fewer than 64 tokens: it reads as it writes."""
    return EmbeddedEngine(smollm2(), *arguments, "-b", "32", "-ub", "32", slots=1, context=1024)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "gathered"])
@pytest.mark.parametrize("what", BODIES)
def test_the_text_is_the_one_without_a_death(what: str, stream: bool, tmp_path: Path) -> None:
    for _ in range(TURNS):
        reply, record, whole = cut_off(what, stream, tmp_path)
        if record["resumed"]:
            break
    assert (record["outcome"], record["resumed"], record["estimated"]) == ("ok", 1, False)
    assert said(reply.chunks if stream else [reply.json]) == said(whole)
    usage = reply.chunks[-1]["usage"] if stream else reply.json["usage"]
    for counted in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[counted] == whole[-1]["usage"][counted]
    assert not stream or reply.events[-1] == DONE


def cut_off(what: str, stream: bool, directory: Path) -> tuple[Reply, dict[str, Any], list[Any]]:
    """A reply whose llama-server was killed, its record, and what the other one says to the same.

    On a busy machine the reply may have ended before anybody has seen it begin.
    """
    path, fields = BODIES[what]
    body = {"model": "m", "temperature": 0, "max_tokens": TOKENS, **fields}
    # A template that knows thoughts gives empty ones to an answer without, when it is continued.
    template = ("--jinja", "--chat-template-file", str(TEMPLATE)) if what == "thoughts" else ()
    request_id = new_id()
    with ExitStack() as stack:
        engines = [stack.enter_context(engine(*template)) for _ in range(2)]
        urls = ", ".join(each.url for each in engines)
        (directory / "corral.yaml").write_text(f"models: [{{name: m, upstreams: [{urls}]}}]")
        # Of one that cannot be reached nobody knows whether it is still at work.
        gateway = stack.enter_context(Gateway(directory, check_idle=False))
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 2, "both ready")
        asked = {**body, **(USAGE if stream else {})}
        client = stack.enter_context(begin(gateway, path, asked, **{"x-request-id": request_id}))
        gateway.until(lambda: gateway.records() or any(written(each) >= TOKENS // 8 for each in engines), "writing")
        victim, survivor = sorted(engines, key=written, reverse=True)
        victim.kill()
        return client.receive(), record_of(gateway, request_id), survivor.stream(path, {**body, **USAGE})


def written(engine: EmbeddedEngine) -> int:
    """How many tokens it has written of what it is at work on."""
    return sum(slot["next_token"][0]["n_decoded"] for slot in engine.get("/slots").json() if slot["is_processing"])


def said(objects: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Thoughts, words, and why they end, of a stream's chunks or of a whole reply."""
    thoughts = words = finish = ""
    for choice in (choice for each in objects for choice in each["choices"]):
        piece = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        thoughts += piece.get("reasoning_content") or ""
        words += piece.get("content") or ""
        finish += choice["finish_reason"] or ""
    return thoughts, words, finish
