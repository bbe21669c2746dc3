"""A reply in one piece passes as it came, but for the model's name and the usage of several choices."""

import json
from typing import Any

import pytest

from corral.core.call import Call, Endpoint
from corral.core.errors import BadReply
from corral.core.usage import Usage
from corral.pipeline.whole import Whole, merge, read_whole
from support.samples import SAMPLES, sample


def body(reply: object) -> bytes:
    # With a space that orjson would not write: who writes it anew is found out.
    return json.dumps(reply).encode()


def call(endpoint: Endpoint = Endpoint.CHAT, *, model: str = "", n: int = 1, inputs: int = 1) -> Call:
    return Call(endpoint, model, {}, n=n, inputs=inputs)


@pytest.mark.parametrize("each", [each for each in SAMPLES if each.n == 1], ids=lambda each: str(each.name))
@pytest.mark.parametrize("model", ["", "smol"])
def test_a_reply_that_needs_no_change_keeps_its_bytes(each: Any, model: str) -> None:
    told = body(each.whole)
    whole = read_whole(told, call(each.endpoint, model=model))
    assert whole.body is told
    assert whole.usage == Usage(
        prompt_tokens=each.whole["usage"]["prompt_tokens"],
        cached_tokens=0,
        completion_tokens=each.whole["usage"]["completion_tokens"],
    )


def test_the_model_gets_the_name_that_was_asked_for() -> None:
    each = sample("a tool call")
    whole = read_whole(body(each.whole), call(model="mine"))
    assert json.loads(whole.body) == each.whole | {"model": "mine"}


def test_nothing_else_is_written_anew_for_the_sake_of_the_name() -> None:
    told = b'{"model":"smol", "choices":[{"text":"\\"model\\":\\"smol\\""}], "usage":{"prompt_tokens":1}}'
    assert read_whole(told, call(model="mine")).body == told.replace(b'"smol"', b'"mine"', 1)


def test_only_the_name_of_the_reply_itself_is_changed() -> None:
    reply = {"timings": {"model": "smol"}, "model": "smol", "usage": {"prompt_tokens": 1}}
    told = json.dumps(reply, separators=(",", ":")).encode()
    assert json.loads(read_whole(told, call(model="mine")).body) == reply | {"model": "mine"}


def test_cached_tokens_are_read_where_they_are_told() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}
    assert read_whole(body({"usage": usage}), call()).usage == Usage(9, 5, 2)
    assert read_whole(body({"usage": usage | {"prompt_tokens_details": None}}), call()).usage == Usage(9, 0, 2)


def test_embeddings_take_their_prompt() -> None:
    reply = {"object": "list", "data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    assert read_whole(body(reply), call(Endpoint.EMBEDDINGS)).usage == Usage(prompt_tokens=4)


def test_the_tokens_of_several_choices_are_counted_by_their_logprobs() -> None:
    each = sample("two choices with logprobs")
    whole = read_whole(body(each.whole), call(n=2))
    assert whole.usage == Usage(prompt_tokens=34, completion_tokens=4)
    told = json.loads(whole.body)
    assert told["usage"]["completion_tokens"] == 4
    assert told["usage"]["total_tokens"] == 38
    assert told["choices"] == each.whole["choices"]


def test_several_choices_without_logprobs_are_estimated() -> None:
    each = sample("two choices")
    assert read_whole(body(each.whole), call(n=2)).usage == Usage(34, 0, 8, estimated=True)


@pytest.mark.parametrize(
    "bad",
    [
        *(b"", b"nonsense", b"[]", b"5", b"{}", b'{"usage":5}', b'{"usage":{}}', b'{"usage":null}', b"\xff"),
        *(b'{"usage":{"prompt_tokens":null}}', b'{"usage":{"prompt_tokens":1,"completion_tokens":"2"}}'),
    ],
)
def test_what_is_no_reply_is_a_bad_reply(bad: bytes) -> None:
    with pytest.raises(BadReply, match="malformed"):
        read_whole(bad, call())


def embeddings(*vectors: list[float], tokens: int) -> Whole:
    data = [{"embedding": vector, "index": at, "object": "embedding"} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    reply = {"model": "m", "object": "list", "usage": usage, "data": data}
    return Whole(body(reply), Usage(prompt_tokens=tokens))


def test_the_parts_of_an_embeddings_call_become_one_reply() -> None:
    parts = [embeddings([0.5], [1.5], tokens=4), embeddings([2.5], tokens=3)]
    whole = merge(parts, [0, 2], call(Endpoint.EMBEDDINGS, inputs=3))
    told = json.loads(whole.body)
    assert [(each["index"], each["embedding"]) for each in told["data"]] == [(0, [0.5]), (1, [1.5]), (2, [2.5])]
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert (told["model"], told["object"]) == ("m", "list")
    assert whole.usage == Usage(prompt_tokens=7)


def completions(texts: list[str], usage: Usage) -> Whole:
    choices = [{"text": text, "index": at, "logprobs": None, "finish_reason": "stop"} for at, text in enumerate(texts)]
    return Whole(body({"choices": choices, "model": "m", "id": "x", "usage": {}}), usage)


def test_the_parts_of_several_prompts_with_several_choices_become_one_reply() -> None:
    parts = [completions(["a", "b"], Usage(3, 1, 5)), completions(["c", "d"], Usage(4, 0, 6, estimated=True))]
    whole = merge(parts, [0, 1], call(Endpoint.COMPLETIONS, n=2, inputs=2))
    told = json.loads(whole.body)
    assert [(each["index"], each["text"]) for each in told["choices"]] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert told["usage"] == {
        "completion_tokens": 11,
        "prompt_tokens": 7,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert whole.usage == Usage(7, 1, 11, estimated=True)
