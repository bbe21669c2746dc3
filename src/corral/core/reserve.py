"""How many tokens a call can take at most, before it is known how many it does."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.demand import PROMPTS, Demand
from corral.core.errors import ContextLengthExceeded, InvalidRequest, RequestError
from corral.core.limits import Limit, Rules

# A token stands for at least one byte of text, and what JSON escapes only gets longer: a prompt has no more tokens
# than its request has bytes, and what the chat template says of its own. The names and brackets around a message take
# more bytes than its marks take tokens; what remains is an instruction at the start (the longest known, of gpt-oss,
# has about a hundred tokens).
TEMPLATE_TOKENS = 256
# Marks at both ends of a plain text, and a space that some vocabularies put before it.
TEXT_TOKENS = 8
# How to call tools, as templates explain it; and they write schemas out over many lines, each of which begins with a
# run of spaces: less than as much again.
TOOLS_TOKENS = 1024
SCHEMA_FACTOR = 2
# Of one picture, sound or video: what the largest projectors of llama.cpp make of an image at their limit, doubled.
MEDIA_TOKENS = 8192


def most_tokens(call: Call, body_bytes: int, context: int | None) -> int:
    """Of its prompts and replies together; ``context`` is that of the largest slot, None where it is not known."""
    return most_prompt_tokens(call, body_bytes, context) + call.tasks * _reply_tokens(call)


def most_prompt_tokens(call: Call, body_bytes: int, context: int | None) -> int:
    """Of all its prompts. (The choices of a prompt share it, and usage counts it once.)"""
    if call.endpoint is Endpoint.CHAT:
        most = _chat_tokens(call.fields, body_bytes)
    else:
        given = call.fields.get(PROMPTS[call.endpoint])
        ids = _token_ids(given)
        most = (body_bytes if ids is None else ids) + call.inputs * TEXT_TOKENS
    return most if context is None else min(most, context * call.inputs)


def complaints(call: Call, rules: Rules, demand: Demand) -> dict[Limit, RequestError]:
    """What is wrong with it by the limits that only look at a request: those it exceeds for certain."""
    found: dict[Limit, RequestError] = {}
    asked = call.max_tokens if call.max_tokens_given else 0
    if 0 < rules.max_tokens < asked:
        found[Limit.MAX_TOKENS] = InvalidRequest(
            f"'max_tokens' is {asked} and client '{rules.client}' may ask for at most {rules.max_tokens}",
            param="max_tokens",
            code="invalid_value",
        )
    if 0 < rules.max_context < demand.least_tokens() + asked:
        found[Limit.MAX_CONTEXT] = ContextLengthExceeded(
            f"client '{rules.client}' may use at most {rules.max_context} tokens for a prompt with its reply; the "
            f"prompt has at least {demand.least_tokens()}, and 'max_tokens' is {asked or 'not given'}",
            param=PROMPTS[call.endpoint],
        )
    return found


def fitted(call: Call, rules: Rules, demand: Demand, context: int | None) -> Call:
    """A call whose client named no ``max_tokens``, with no more of them than its limits can ever admit."""
    if call.max_tokens_given or call.endpoint is Endpoint.EMBEDDINGS:
        return call
    room = min([call.max_tokens, *_rooms(call, rules, demand, context)])
    if room == call.max_tokens:
        return call
    return replace(call, max_tokens=room, fields={**call.fields, "max_tokens": room})


def _rooms(call: Call, rules: Rules, demand: Demand, context: int | None) -> Iterator[int]:
    if rules.max_tokens and Limit.MAX_TOKENS not in rules.shadow:
        yield rules.max_tokens
    if rules.max_context and Limit.MAX_CONTEXT not in rules.shadow:
        yield max(1, rules.max_context - demand.least_tokens())
    if (tokens := rules.least_tokens) is not None:
        room = (tokens - most_prompt_tokens(call, demand.body_bytes, context)) // call.tasks
        if room > 0:
            yield room


def _reply_tokens(call: Call) -> int:
    if call.endpoint is Endpoint.EMBEDDINGS:
        return 0
    # llama-server makes one token also for who asks for none.
    return max(1, call.max_tokens)


def _chat_tokens(fields: Mapping[str, Any], body_bytes: int) -> int:
    text_bytes, media = body_bytes, 0
    for part in _media(fields.get("messages", ())):
        media += 1
        image = part.get("image_url")
        # The bytes of a picture are not read as text. Of sound, their number says how long it is.
        if isinstance(image, dict):
            text_bytes -= len(image.get("url", ""))
    most = text_bytes + TEMPLATE_TOKENS + media * MEDIA_TOKENS
    if any(fields.get(key) for key in ("tools", "response_format", "json_schema")):
        return SCHEMA_FACTOR * most + TOOLS_TOKENS
    return most


def _media(messages: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401  (JSON)
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if part.get("type") != "text")


def _token_ids(given: Any) -> int | None:  # noqa: ANN401  (JSON)
    """How many token ids it is; None where a part of it is text."""
    if not isinstance(given, list):
        return None
    if all(isinstance(item, int) for item in given):
        return len(given)
    if all(isinstance(item, list) for item in given):
        return sum(len(item) for item in given)
    return None
