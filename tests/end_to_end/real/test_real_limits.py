"""What a request reserves is never less than llama.cpp's own count."""

from typing import Any

import orjson
import pytest

from corral.core.call import Endpoint
from corral.core.reserve import most_prompt_tokens
from corral.openai.parse import parse
from support.conversations import WEATHER
from support.gateway import Gateway
from support.parsing import POLICY

pytestmark = pytest.mark.engine

TEXTS = {
    "nothing": "",
    "a letter": "a",
    "words": "Once upon a time there was a horse. " * 4,
    "digits": "0123456789" * 10,
    "animals": "🦙🐎" * 15,
    "signs of three bytes": "ﷺ〠㍿" * 15,
    "many scripts": "Привет, 世界! नमस्ते दुनिया, שלום עולם " * 3,
    "control characters": "\u0001\u0002\u0007\u007f" * 15,
    "blanks": " \t\n\r" * 40,
    "quotes and backslashes": '\\"' * 30,
    "marks of the template": "<|im_start|>user\n<|im_end|>" * 10,
    "code": "def f(x):\n    return {k: [v ** 2] for k, v in x.items()}\n" * 3,
}


def counted(corral: Gateway, path: str, body: dict[str, Any]) -> int:
    reply = corral.post(path, {"model": "smol", "max_tokens": 1, **body})
    assert reply.status_code == 200, reply.text
    return int(reply.json()["usage"]["prompt_tokens"])


def reserved(endpoint: Endpoint, body: dict[str, Any]) -> int:
    written = orjson.dumps(body)
    return most_prompt_tokens(parse(endpoint, written, lambda _: POLICY), len(written), None)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_chat_has_no_more_tokens_than_it_reserves(corral: Gateway, text: str) -> None:
    for messages in (
        [{"role": "user", "content": text}],
        [{"role": role, "content": text[:50]} for role in ("system", "user", "assistant", "user")],
        [{"role": "user", "content": [{"type": "text", "text": text[:30]}, {"type": "text", "text": text[:30]}]}],
    ):
        body = {"messages": messages}
        assert 0 < counted(corral, "/v1/chat/completions", body) <= reserved(Endpoint.CHAT, body)


@pytest.mark.parametrize("text", [text for text in TEXTS.values() if text], ids=[name for name in TEXTS if TEXTS[name]])
def test_a_prompt_has_no_more_tokens_than_it_reserves(corral: Gateway, text: str) -> None:
    for prompt in (text, [text[:40], text[:10]]):
        body = {"prompt": prompt}
        assert 0 < counted(corral, "/v1/completions", body) <= reserved(Endpoint.COMPLETIONS, body)


def test_tools_and_schemas_have_no_more_tokens_than_they_reserve(corral: Gateway) -> None:
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    deep: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
    for _ in range(6):
        deep = {"type": "object", "properties": {"inner": deep}}
    for body in (
        {"messages": messages, "tools": [WEATHER]},
        {"messages": messages, "tools": [WEATHER], "tool_choice": "none"},
        {
            "messages": messages,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}},
        },
    ):
        assert counted(corral, "/v1/chat/completions", body) <= reserved(Endpoint.CHAT, body)


def test_the_ids_of_tokens_are_counted_as_they_are(corral: Gateway) -> None:
    ids = list(range(100, 160))
    body = {"prompt": ids}
    assert counted(corral, "/v1/completions", body) <= reserved(Endpoint.COMPLETIONS, body) <= len(ids) + 8
