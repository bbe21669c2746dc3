"""From a well-typed chat request to a ``Call``: combinations refused, llama-server's traps mended."""

from collections.abc import Mapping
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.errors import InvalidRequest
from corral.openai.complaints import MISSING, UNSUPPORTED
from corral.openai.generation import (
    UNSUPPORTED_GENERATION,
    ensure_sound,
    include_usage,
    mend_stop,
    refusal,
    without_nulls,
)
from corral.openai.media import ensure_local
from corral.openai.messages import Message
from corral.openai.policy import Policy, fields_of, own_fields_out, refuse_unsupported, token_limit
from corral.openai.requests import ChatRequest, EverydayChatRequest
from corral.openai.tool_choice import choose_tools

# llama-server would ignore these in silence, and the reply would not be what was asked for.
UNSUPPORTED_CHAT: Mapping[str, str] = {
    **UNSUPPORTED_GENERATION,
    "functions": "use 'tools'",
    "function_call": "use 'tool_choice'",
    "audio": "the model server answers in text only",
    "web_search_options": "the model server does not search the web",
}

# What most messages are made of.
PLAIN_MESSAGE = {"role", "content"}


def chat_call(request: ChatRequest, body: Mapping[str, Any], policy: Policy) -> Call:
    """``body`` is what ``request`` was read from. Raises ``InvalidRequest`` for what cannot be served."""
    refuse_unsupported(body, UNSUPPORTED_CHAT)
    _ensure_text_only(body)
    ensure_sound(request)
    _ensure_messages(request.messages)
    ensure_local(request.messages, policy)
    _ensure_one_format(request)
    fields = fields_of(body, policy)
    tools = choose_tools(request, fields)
    _ensure_logprobs(request, tools=bool(request.tools))
    _mend(request, fields)
    given = token_limit((request.n_predict, request.max_completion_tokens, request.max_tokens))
    max_tokens = policy.default_max_tokens if given is None else given
    fields["max_tokens"] = max_tokens
    return Call(
        endpoint=Endpoint.CHAT,
        model=request.model or "",
        fields=fields,
        stream=bool(request.stream),
        include_usage=include_usage(request),
        include_progress=bool(request.return_progress),
        n=request.n or 1,
        max_tokens=max_tokens,
        max_tokens_given=given is not None,
        tools=tools,
        logprobs=bool(request.logprobs or request.n_probs),
    )


def everyday_call(request: EverydayChatRequest, body: Mapping[str, Any], policy: Policy) -> Call:
    """What ``chat_call`` makes of a body with everyday fields only, where the policy has no parameters."""
    _ensure_messages(request.messages)
    ensure_local(request.messages, policy)
    fields = own_fields_out(body)
    fields["messages"] = [_mended(message) for message in fields["messages"]]
    given = token_limit((request.max_completion_tokens, request.max_tokens))
    max_tokens = policy.default_max_tokens if given is None else given
    fields["max_tokens"] = max_tokens
    return Call(
        Endpoint.CHAT,
        request.model or "",
        fields,
        bool(request.stream),
        max_tokens=max_tokens,
        max_tokens_given=given is not None,
    )


def _ensure_text_only(body: Mapping[str, Any]) -> None:
    if body.get("modalities") not in (None, ["text"]):
        raise InvalidRequest(
            "'modalities' is not supported: the model server answers in text only; leave it out, or send [\"text\"]",
            param="modalities",
            code=UNSUPPORTED,
        )


def _ensure_messages(messages: list[Message]) -> None:
    for at, message in enumerate(messages):
        if message.role == "assistant":
            _ensure_said_something(message, f"messages[{at}].content")
        elif message.content is None:
            raise _missing(f"messages[{at}].content", f"for the role '{message.role}'")
        if message.role == "tool" and message.tool_call_id is None:
            raise _missing(f"messages[{at}].tool_call_id", "for the role 'tool'")
    if len(messages) > 1 and messages[-1].role == messages[-2].role == "assistant":
        raise refusal("messages", "'messages' may end with one assistant message, which is continued, not with two")


def _ensure_said_something(message: Message, param: str) -> None:
    if message.content is None and not message.tool_calls and message.reasoning_content is None:
        raise _missing(param, "for the role 'assistant' without 'tool_calls'")


def _missing(param: str, when: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' is required {when}", param=param, code=MISSING)


def _ensure_one_format(request: ChatRequest) -> None:
    # llama-server takes the schema of response_format and forgets the other constraint.
    if request.response_format is None or request.response_format.type == "text":
        return
    for param in ("grammar", "json_schema"):
        if getattr(request, param) is not None:
            raise refusal(param, f"use either 'response_format' or '{param}', not both")


def _ensure_logprobs(request: ChatRequest, *, tools: bool) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise refusal("top_logprobs", "'top_logprobs' needs 'logprobs': true")
    if request.logprobs and request.stream and tools:
        raise refusal(
            "logprobs",
            "the model server cannot stream 'logprobs' together with 'tools'; ask without 'stream', or leave one out",
        )


def _mend(request: ChatRequest, fields: dict[str, Any]) -> None:
    fields["messages"] = [_mended(message) for message in fields["messages"]]
    mend_stop(fields)
    if request.logprobs and request.top_logprobs == 0:
        # llama-server takes 0 for "no logprobs at all"; the tokens' own come with one alternative.
        fields["top_logprobs"] = 1


def _mended(message: dict[str, Any]) -> dict[str, Any]:
    """Templates know ``system`` but not ``developer``."""
    if message.keys() == PLAIN_MESSAGE and message["role"] != "developer":
        return message
    mended = without_nulls(message, keep="content")
    if mended["role"] == "developer":
        mended = mended | {"role": "system"}
    if "tool_calls" in mended:
        mended = mended | {"tool_calls": [without_nulls(call) for call in mended["tool_calls"]]}
    return mended
