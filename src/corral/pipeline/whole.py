"""Replies that come in one piece: their usage, and the name of their model."""

from dataclasses import dataclass
from typing import Any

import orjson

from corral.core.call import Call
from corral.core.chunks import usage_json
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
    renamed = bool(call.model) and reply.get("model") != call.model
    if renamed:
        reply["model"] = call.model
    if call.n > 1:
        reply["usage"] = usage_json(usage)
    return Whole(orjson.dumps(reply) if renamed or call.n > 1 else body, usage)


def merge(parts: list[Whole], starts: list[int], call: Call) -> Whole:
    """One reply out of those to the parts of a call; ``starts`` holds the number of each part's first input."""
    replies = [orjson.loads(part.body) for part in parts]
    listed = "data" if "data" in replies[0] else "choices"
    items = [
        item | {"index": item["index"] + start * call.n}
        for reply, start in zip(replies, starts, strict=True)
        for item in reply[listed]
    ]
    usage = Usage(
        sum(part.usage.prompt_tokens for part in parts),
        sum(part.usage.cached_tokens for part in parts),
        sum(part.usage.completion_tokens for part in parts),
        estimated=any(part.usage.estimated for part in parts),
    )
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
    return Whole(
        orjson.dumps(replies[0] | {listed: items, "usage": told if listed == "data" else usage_json(usage)}), usage
    )


def _usage(reply: dict[str, Any], call: Call) -> Usage:
    told = reply["usage"]
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    completion = told.get("completion_tokens", 0)
    if call.n > 1:
        completion = sum(len(choice["logprobs"]["content"]) for choice in reply["choices"])
    return Usage(told["prompt_tokens"], cached, completion)
