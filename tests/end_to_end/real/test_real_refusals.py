"""What is wrong with a request is told by Corral, and costs llama-server nothing."""

from typing import Any

import pytest

from support.conversations import WEATHER
from support.embedded_engine import EmbeddedEngine
from support.gateway import Gateway

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBED = "/v1/embeddings"

HELLO: dict[str, Any] = {"model": "smol", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
COUNT: dict[str, Any] = {"model": "smol", "prompt": "One, two,", "max_tokens": 1}
INPUT: dict[str, Any] = {"model": "smol", "input": "a horse"}
WEB_IMAGE = {"type": "image_url", "image_url": {"url": "http://example.org/horse.png"}}

MALFORMED: list[tuple[str, Any, str | None]] = [
    (CHAT, [], None),
    (CHAT, {"model": "smol"}, "messages"),
    (CHAT, HELLO | {"messages": "hello"}, "messages"),
    (CHAT, HELLO | {"messages": []}, "messages"),
    (CHAT, HELLO | {"messages": [{"role": "king", "content": "hello"}]}, "messages[0].role"),
    (CHAT, HELLO | {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, HELLO | {"messages": [{"role": "user", "content": [WEB_IMAGE]}]}, "messages[0].content[0].image_url.url"),
    (CHAT, HELLO | {"model": "smol2"}, "model"),
    (CHAT, HELLO | {"model": 7}, "model"),
    (CHAT, HELLO | {"temperature": "0.2"}, "temperature"),
    (CHAT, HELLO | {"temperature": -1}, "temperature"),
    (CHAT, HELLO | {"max_tokens": 1.5}, "max_tokens"),
    (CHAT, HELLO | {"n": 0}, "n"),
    (CHAT, HELLO | {"n": 3}, "n"),
    (CHAT, HELLO | {"stream": "yes"}, "stream"),
    (CHAT, HELLO | {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, HELLO | {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, HELLO | {"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
    (CHAT, HELLO | {"tool_choice": "required"}, "tool_choice"),
    (CHAT, HELLO | {"response_format": {"type": "yaml"}}, "response_format.type"),
    (CHAT, HELLO | {"id_slot": 0}, "id_slot"),
    (TEXT, {"model": "smol"}, "prompt"),
    (TEXT, COUNT | {"prompt": []}, "prompt"),
    (TEXT, COUNT | {"echo": True}, "echo"),
    (EMBED, {"model": "smol"}, "input"),
    (EMBED, INPUT | {"input": [["a"]]}, "input[0][0]"),
    (EMBED, INPUT | {"encoding_format": "hex"}, "encoding_format"),
]


@pytest.mark.parametrize(("path", "body", "param"), MALFORMED)
def test_a_malformed_request_is_refused_naming_what_is_wrong(
    corral: Gateway, engine: EmbeddedEngine, path: str, body: Any, param: str | None
) -> None:
    before = work_of(engine)
    reply = corral.post(path, body)
    error = reply.json()["error"]
    assert reply.status_code in (400, 404)
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    request_id = reply.headers["x-request-id"]
    corral.until(lambda: request_id in [record["request_id"] for record in corral.records()], "recorded")
    record = corral.records()[-1]
    assert (record["outcome"], record["attempts"]) == ("refused", 0)
    assert work_of(engine) == before


def work_of(engine: EmbeddedEngine) -> tuple[float, float]:
    """What llama-server has done so far."""
    return engine.metric("prompt_tokens_total"), engine.metric("tokens_predicted_total")
