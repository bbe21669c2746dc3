"""Replies that come in one piece: their usage, and the name of their model."""

from dataclasses import dataclass
from typing import Any

import orjson

from corral.core.call import Call
from corral.core.chunks import HAS_MODEL, usage_json
from corral.core.errors import BadReply
from corral.core.usage import Usage


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete reply as JSON, and what it took."""

    body: bytes
    usage: Usage


def read_whole(body: bytes, call: Call) -> Whole:
    """Take in a whole reply of llama-server; raises BadReply when it is none.

    The bytes stay as they came, but for the model's name where it is not the
    one asked for, and the usage of several choices, of which llama-server
    counts one.
    """
    try:
        reply = orjson.loads(body)
        usage = _usage(reply, call)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadReply("the model server sent a malformed reply") from error
    if call.n > 1:
        reply["usage"] = usage_json(usage)
        body = orjson.dumps(reply)
    return Whole(_renamed(body, reply, call.model), usage)


def merge(parts: list[Whole], starts: list[int], call: Call) -> Whole:
    """One reply out of those to the parts of a call; ``starts`` holds the number of each part's first input."""
    replies = [orjson.loads(part.body) for part in parts]
    listed = "data" if "data" in replies[0] else "choices"
    items = [
        item | {"index": item["index"] + start * call.n}
        for reply, start in zip(replies, starts, strict=True)
        for item in reply[listed]
    ]
    usage = sum((part.usage for part in parts), Usage())
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
    merged = replies[0] | {listed: items, "usage": told if listed == "data" else usage_json(usage)}
    return Whole(orjson.dumps(merged), usage)


def _renamed(body: bytes, reply: dict[str, Any], asked: str) -> bytes:
    """The reply with the model's name as the client wrote it."""
    name = reply.get("model")
    if not asked or name == asked:
        return body
    told = HAS_MODEL + orjson.dumps(name)
    if body.count(told) == 1:
        # To write thousands of numbers anew takes longer than all the rest.
        return body.replace(told, HAS_MODEL + orjson.dumps(asked))
    return orjson.dumps(reply | {"model": asked})


def _usage(reply: dict[str, Any], call: Call) -> Usage:
    told = reply["usage"]
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    completion = told.get("completion_tokens", 0)
    if call.n == 1:
        return Usage(told["prompt_tokens"], cached, completion)
    counts = [_tokens_shown(choice) for choice in reply["choices"]]
    if None in counts:
        # The other choices may be shorter or longer than the one that is counted.
        return Usage(told["prompt_tokens"], cached, completion * len(counts), estimated=True)
    return Usage(told["prompt_tokens"], cached, sum(filter(None, counts)))


def _tokens_shown(choice: dict[str, Any]) -> int | None:
    """The tokens of a choice by its logprobs; None when it has none to count."""
    logprobs = choice.get("logprobs")
    return len(logprobs["content"]) if logprobs else None
