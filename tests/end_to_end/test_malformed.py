"""Requests that are not what the endpoints take: each is refused by name, and none reaches the llama-server."""

from typing import Any

import pytest

from support.fake import FakeLlama
from support.front import Front
from support.talk import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    chat,
    completion,
    credentials,
    error_of,
    new_id,
    post,
    record_of,
    send_raw,
)

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look"}}
DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"deeper": DEEP}


def embedding(**fields: Any) -> dict[str, Any]:
    return {"model": "one", "input": "hello", **fields}


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


# The endpoint, the body, and the parameter that the refusal names.
MALFORMED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no messages": (CHAT, {"model": "one"}, "messages"),
    "messages that are text": (CHAT, {"model": "one", "messages": "hello"}, "messages"),
    "empty messages": (CHAT, {"model": "one", "messages": []}, "messages"),
    "a message that is none": (CHAT, {"model": "one", "messages": [7]}, "messages[0]"),
    "a message without a role": (CHAT, {"model": "one", "messages": [{"content": "x"}]}, "messages[0].role"),
    "an unknown role": (CHAT, chat() | {"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
    "a number for content": (CHAT, chat() | {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    "no content": (CHAT, chat() | {"messages": [{"role": "user"}]}, "messages[0].content"),
    "a part of no known type": (
        CHAT,
        chat() | {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "messages[0].content[0].type",
    ),
    "an answer to no call": (
        CHAT,
        chat() | {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
    ),
    "a remote image": (
        CHAT,
        chat() | {"messages": image("http://10.0.0.1/x.png")},
        "messages[0].content[0].image_url.url",
    ),
    "a file for an image": (
        CHAT,
        chat() | {"messages": image("file:///etc/passwd")},
        "messages[0].content[0].image_url.url",
    ),
    "a model that is a number": (CHAT, chat() | {"model": 7}, "model"),
    "max_tokens in quotes": (CHAT, chat(max_tokens="5"), "max_tokens"),
    "negative max_tokens": (CHAT, chat(max_tokens=-2), "max_tokens"),
    "half a token": (CHAT, chat(max_tokens=1.5), "max_tokens"),
    "n of none": (CHAT, chat(n=0), "n"),
    "a huge n": (CHAT, chat(n=1_000_000), "n"),
    "stream in words": (CHAT, chat(stream="yes"), "stream"),
    "too hot": (CHAT, chat(temperature=3), "temperature"),
    "no number at all": (CHAT, chat(temperature="hot"), "temperature"),
    "top_p of two": (CHAT, chat(top_p=2), "top_p"),
    "a penalty beyond the range": (CHAT, chat(presence_penalty=-3), "presence_penalty"),
    "stop that is a number": (CHAT, chat(stop=7), "stop"),
    "too many stops": (CHAT, chat(stop=["x"] * 100_000), "stop"),
    "logit_bias that is a list": (CHAT, chat(logit_bias=7), "logit_bias"),
    "top_logprobs alone": (CHAT, chat(top_logprobs=3), "top_logprobs"),
    "stream_options alone": (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    "a format of no known type": (CHAT, chat(response_format={"type": "xml"}), "response_format.type"),
    "a schema that is missing": (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    "tools that are text": (CHAT, chat(tools="look"), "tools"),
    "a tool without a function": (CHAT, chat(tools=[{"type": "function"}]), "tools[0].function"),
    "a choice among no tools": (CHAT, chat(tool_choice="required"), "tool_choice"),
    "a choice of an unknown tool": (
        CHAT,
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "listen"}}),
        "tool_choice.function.name",
    ),
    "tools at a template without": (CHAT, chat(tools=[TOOL]), "tools"),
    "a grammar and a schema": (CHAT, chat(grammar="root ::= x", json_schema={}), "grammar"),
    "functions of old": (CHAT, chat(functions=[]), "functions"),
    "sound": (CHAT, chat(modalities=["text", "audio"]), "modalities"),
    "a slot of one's own": (CHAT, chat(id_slot=0), "id_slot"),
    "n_predict": (CHAT, chat(n_predict=5), "n_predict"),
    "an adapter": (CHAT, chat(lora=[{"id": 0, "scale": 1}]), "lora"),
    "the prompt in the reply": (CHAT, chat(verbose=True), "verbose"),
    "speculation": (CHAT, chat() | {"speculative.n_max": 5}, "speculative.n_max"),
    "depth": (CHAT, chat(metadata_of_mine=DEEP), "metadata_of_mine"),
    "no prompt": (COMPLETIONS, {"model": "one"}, "prompt"),
    "an empty list of prompts": (COMPLETIONS, completion([]), "prompt"),
    "a prompt that is an object": (COMPLETIONS, completion({"text": "x"}), "prompt"),
    "tokens and text in one": (COMPLETIONS, completion([[1, "x"]]), "prompt[0][1]"),
    "echo": (COMPLETIONS, completion(echo=True), "echo"),
    "a suffix": (COMPLETIONS, completion(suffix="."), "suffix"),
    "best of many": (COMPLETIONS, completion(best_of=5), "best_of"),
    "logprobs of twenty": (COMPLETIONS, completion(logprobs=20), "logprobs"),
    "no input": (EMBEDDINGS, {"model": "one"}, "input"),
    "an empty input": (EMBEDDINGS, embedding(input=""), "input"),
    "an empty list of inputs": (EMBEDDINGS, embedding(input=[]), "input"),
    "an input that is an object": (EMBEDDINGS, embedding(input={}), "input"),
    "too many inputs": (EMBEDDINGS, embedding(input=["x"] * 2049), "input"),
    "an unknown format": (EMBEDDINGS, embedding(encoding_format="hex"), "encoding_format"),
    "dimensions": (EMBEDDINGS, embedding(dimensions=4), "dimensions"),
    "a stream of embeddings": (EMBEDDINGS, embedding(stream=True), "stream"),
}

# Bodies that are no JSON object.
NO_OBJECT: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b"  \n",
    "half an object": b'{"model": "one", "mess',
    "an array": b"[]",
    "text": b'"hello"',
    "a number": b"7",
    "null": b"null",
    "no JSON": b"model=one",
    "two objects": b"{}{}",
    "a number that is none": b'{"temperature": NaN}',
    "broken UTF-8": b'{"model": "\xff\xfe"}',
    "half a surrogate pair": b'{"model": "\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "depth without end": b'{"x":' + b"[" * 100_000,
}


def assert_untouched(fake: FakeLlama) -> None:
    """Nothing of all this reaches a llama-server."""
    assert [request["path"] for request in fake.requests() if request["method"] == "POST"] == []


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_by_name(front: Front, name: str) -> None:
    path, body, param = MALFORMED[name]
    request_id = new_id()
    reply = post(front.gateway, path, body, **{"x-request-id": request_id})
    error = error_of(reply)
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param.split(".")[0].split("[")[0] in error["message"]
    assert error["code"] is not None
    record = record_of(front.gateway, request_id)
    assert (record["status"], record["outcome"], record["attempts"]) == (400, "refused", 0)
    assert_untouched(front.one)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("name", NO_OBJECT)
def test_what_is_no_json_object_is_refused(front: Front, name: str, path: str) -> None:
    head = [f"{key}: {value}" for key, value in credentials("local", Connection="close").items()]
    body = NO_OBJECT[name]
    reply = send_raw(
        front.gateway, f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *head, body=body
    )
    error = error_of(reply)
    assert (reply.status, error["type"]) == (400, "invalid_request_error")
    assert error["code"] in ("invalid_json", "invalid_type")
    assert_untouched(front.one)
