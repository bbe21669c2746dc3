"""What Corral gathers and relays is what llama-server itself would have sent, compared on the same engine."""

import json
import re
from typing import Any

import httpx
import pytest

from support.conversations import WEATHER, thoughtful_talk, weather_talk
from support.embedded_engine import EmbeddedEngine
from support.gateway import KEY, PATIENCE_S, Gateway

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}

# The same work gives the same numbers: the same sampling, and nothing of the prompt out of the cache.
SAME_WORK = {"temperature": 0, "cache_prompt": False, "max_tokens": 20}
HELLO = {"messages": [{"role": "user", "content": "hello"}], **SAME_WORK}
CITY = {"messages": [{"role": "user", "content": "Answer in JSON: is Paris a large city?"}], **SAME_WORK}
CALL = {"messages": weather_talk("Rome", "Oslo"), "tools": [WEATHER], **SAME_WORK, "max_tokens": 60}
COUNT = {"prompt": "One, two, three,", **SAME_WORK}
PROMPTS = ["The capital of France is", "One, two, three,"]
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
SCHEMA = {"type": "object", "properties": {"large": {"type": "boolean"}}, "required": ["large"]}
BY_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat": (CHAT, HELLO),
    "a short chat": (CHAT, HELLO | {"max_tokens": 5}),
    "a chat with stop strings": (CHAT, HELLO | {"stop": [" the", "."]}),
    "a chat with logprobs": (CHAT, HELLO | LOGPROBS),
    "two choices": (CHAT, HELLO | {"n": 2}),
    "two different choices": (CHAT, HELLO | {"n": 2, "temperature": 1, "seed": 3}),
    "two choices with logprobs": (CHAT, HELLO | {"n": 2} | LOGPROBS),
    "a chat by JSON schema": (CHAT, CITY | BY_SCHEMA),
    "a chat by grammar": (CHAT, HELLO | {"grammar": 'root ::= "yes" | "no"'}),
    "a chat beyond ASCII": (CHAT, HELLO | {"grammar": 'root ::= "été 😀 日本 \\"x\\""', "max_tokens": 40}),
    "a chat with thoughts": (CHAT, HELLO | {"messages": thoughtful_talk(), "max_tokens": 40}),
    "a tool call": (CHAT, CALL),
    "a tool call that is cut": (CHAT, CALL | {"max_tokens": 20}),
    "tools that are not called": (CHAT, CALL | {"tool_choice": "none", "max_tokens": 20}),
    "tools with logprobs": (CHAT, CALL | LOGPROBS),
    "a completion": (TEXT, COUNT),
    "a completion with a stop string": (TEXT, COUNT | {"stop": [" six"]}),
    "a completion with logprobs": (TEXT, COUNT | {"logprobs": 2}),
    "two completions": (TEXT, COUNT | {"n": 2}),
    "two prompts with logprobs": (TEXT, COUNT | {"prompt": PROMPTS, "logprobs": 1}),
    "tokens as a prompt": (TEXT, COUNT | {"prompt": [504, 3575, 282]}),
}

STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "two choices with logprobs": REQUESTS["two choices with logprobs"],
    "a chat with thoughts": REQUESTS["a chat with thoughts"],
    "a chat with usage": (CHAT, HELLO | USAGE),
    "a chat beyond ASCII": REQUESTS["a chat beyond ASCII"],
    "a tool call": REQUESTS["a tool call"],
    "progress and timings": (CHAT, HELLO | {"return_progress": True, "timings_per_token": True}),
    "two completions": REQUESTS["two completions"],
    "two prompts with logprobs": REQUESTS["two prompts with logprobs"],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_gathered_reply_is_the_one_that_llama_server_sends_whole(
    corral: Gateway, engine: EmbeddedEngine, name: str
) -> None:
    path, body = REQUESTS[name]
    theirs = engine.post(path, body)
    ours = corral.post(path, {"model": "smol", **body}).json()
    assert json.dumps(without_ids(ours["choices"])) == json.dumps(without_ids(theirs["choices"]))
    assert ours.keys() == theirs.keys()
    assert (ours["object"], ours["model"]) == (theirs["object"], "smol")
    if len(ours["choices"]) == 1:
        assert ours["usage"] == theirs["usage"]
    else:
        # Of several choices llama-server counts one.
        assert ours["usage"].keys() == theirs["usage"].keys()
        assert ours["usage"]["completion_tokens"] > theirs["usage"]["completion_tokens"]


@pytest.mark.parametrize("name", STREAMS)
def test_a_relayed_stream_is_byte_by_byte_the_one_that_llama_server_sends(
    corral: Gateway, engine: EmbeddedEngine, name: str
) -> None:
    path, body = STREAMS[name]
    theirs, ours = (stream_of(url, path, body) for url in (engine.url, corral.url))
    if path == TEXT:
        # llama-server puts the usage on the last piece of each choice, asked or not, and begins with a null.
        theirs = re.sub(rb'"usage":\{.*?\}\},', b"", theirs).removeprefix(b"data: null\n\n")
    assert ours == theirs
    assert ours.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "body", "completion_tokens"),
    [(CHAT, HELLO | {"n": 2}, 40), (TEXT, COUNT, 20), (TEXT, COUNT | {"prompt": PROMPTS}, 40)],
)
def test_the_usage_of_a_stream_is_one_chunk_before_its_end(
    corral: Gateway, path: str, body: dict[str, Any], completion_tokens: int
) -> None:
    *chunks, usage, done, rest = stream_of(corral.url, path, body | USAGE).split(b"\n\n")
    told = json.loads(usage.removeprefix(b"data: "))
    assert told["choices"] == []
    assert told["usage"]["completion_tokens"] == completion_tokens
    assert not any(b'"usage":{' in chunk for chunk in chunks)
    assert (done, rest) == (b"data: [DONE]", b"")


def without_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """llama-server makes up the ids of tool calls."""
    for choice in choices:
        for call in choice.get("message", {}).get("tool_calls", []):
            assert call.pop("id")
    return choices


def stream_of(url: str, path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a stream, with the same in the place of what differs from run to run."""
    reply = httpx.post(
        url + path,
        json={"model": "smol", "stream": True, **body},
        headers={"authorization": f"Bearer {KEY}"},
        timeout=PATIENCE_S,
    )
    assert reply.status_code == 200, reply.text
    stream = re.sub(rb'"created":\d+', b'"created":0', reply.content)
    stream = re.sub(rb'"(id|model)":"[^"]+"', rb'"\1":""', stream)
    stream = re.sub(rb'"time_ms":\d+', b'"time_ms":0', stream)
    return re.sub(rb'"timings":\{[^}]*\}', b'"timings":{}', stream)
