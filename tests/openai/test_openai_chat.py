"""What becomes of a good chat request: the call, and the traps of llama-server that are mended."""

from typing import Any

import orjson
import pytest

from corral.core.call import Endpoint
from corral.openai.parse import Policy, parse
from support.parsing import HELLO, POLICY, read_chat, tool

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_the_readmes_request_is_sent_as_it_is_with_a_limit() -> None:
    call = read_chat(model="llama", temperature=0.2)
    assert call.fields == {"messages": HELLO, "temperature": 0.2, "max_tokens": 500}
    assert (call.endpoint, call.model, call.stream, call.n, call.inputs) == (Endpoint.CHAT, "llama", False, 1, 1)
    assert (call.tools, call.logprobs, call.include_usage, call.include_progress) == (False, False, False, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 40, "min_p": 0.05, "typical_p": 1, "top_n_sigma": -1, "repeat_penalty": 1.1, "repeat_last_n": 64},
        {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_sequence_breakers": ["\n", ":"]},
        {"mirostat": 2, "mirostat_tau": 5, "mirostat_eta": 0.1, "samplers": ["top_k", "temperature"]},
        {"samplers": "kt", "cache_prompt": False, "timings_per_token": True, "n_keep": -1, "t_max_predict_ms": 100},
        {"grammar": 'root ::= "a"'},
        {"json_schema": {"type": "object"}},
        {"response_format": {"type": "text"}, "grammar": 'root ::= "a"'},
        {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}}},
        {"seed": -1, "stop": ["a", "b"], "logit_bias": {"15043": -100}, "presence_penalty": -2, "top_p": 1},
        {"logit_bias": [[15043, False], ["Hello", 2.5]], "stop": "a"},
        {"logprobs": True, "top_logprobs": 20},
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}, "reasoning_format": "auto"},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k"},
        {"prediction": {"type": "content", "content": "a"}, "modalities": ["text"], "parallel_tool_calls": True},
        {"nobody_knows_this_yet": {"a": [1, 2.5, None, "b"]}},
        {"tools": [tool("f", parameters={"type": "object"}, strict=True)], "tool_choice": "required"},
    ],
    ids=lambda fields: " ".join(fields)[:50],
)
def test_known_and_unknown_fields_reach_llama_server_unchanged(fields: dict[str, Any]) -> None:
    assert read_chat(**fields).fields == {"messages": HELLO, "max_tokens": 500, **fields}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "a"}, {"role": "user", "name": "Ann", "content": "b"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "go on with this"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "reasoning_content": "hm"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "5"},
        ],
        [{"role": "user", "content": "a"}, {"role": "function", "name": "f", "content": "5"}],
        [{"role": "user", "content": ""}],
    ],
    ids=lambda messages: messages[-1]["role"],
)
def test_conversations_of_every_kind_pass_unchanged(messages: list[dict[str, Any]]) -> None:
    assert read_chat(messages=messages).fields["messages"] == messages


def test_the_role_developer_is_sent_as_system_which_every_template_knows() -> None:
    call = read_chat(messages=[{"role": "developer", "content": "be brief"}, *HELLO])
    assert call.fields["messages"] == [{"role": "system", "content": "be brief"}, *HELLO]


def test_nulls_that_sdks_write_are_left_out() -> None:
    spoken = {"role": "assistant", "content": "x", "tool_calls": None, "refusal": None, "function_call": None}
    called = {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": None}], "name": None}
    call = read_chat(
        messages=[*HELLO, spoken, *HELLO, called],
        tools=[tool("f", description=None)],
        temperature=None,
        stop=None,
        stream_options=None,
        lora=None,
    )
    assert call.fields == {
        "messages": [
            *HELLO,
            {"role": "assistant", "content": "x"},
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [{k: v for k, v in CALL.items() if k != "id"}]},
        ],
        "tools": [tool("f")],
        "max_tokens": 500,
    }


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        ({}, 500),
        ({"max_tokens": None}, 500),
        ({"max_tokens": -1}, 500),
        ({"max_completion_tokens": -1}, 500),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 9000}, 9000),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 9, "max_completion_tokens": None}, 9),
        ({"max_tokens": 9, "max_completion_tokens": -1}, 9),
        ({"max_tokens": -1, "ignore_eos": True}, 500),
    ],
    ids=str,
)
def test_a_limit_of_tokens_is_always_sent(limits: dict[str, Any], sent: int) -> None:
    call = read_chat(**limits)
    assert (call.fields["max_tokens"], call.max_tokens) == (sent, sent)
    assert "max_completion_tokens" not in call.fields


@pytest.mark.parametrize(
    ("stop", "sent"),
    [("", None), ([], None), (["", ""], None), (["", "a"], ["a"]), ("a", "a"), (["a"], ["a"])],
    ids=str,
)
def test_empty_stop_strings_which_would_stop_at_once_are_left_out(stop: object, sent: object) -> None:
    assert read_chat(stop=stop).fields.get("stop") == sent


def test_no_alternatives_are_asked_for_as_one_since_llama_server_takes_none_for_no_logprobs() -> None:
    call = read_chat(logprobs=True, top_logprobs=0)
    assert (call.fields["top_logprobs"], call.logprobs) == (1, True)


def test_the_stream_is_corrals_own_affair() -> None:
    call = read_chat(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        return_progress=True,
        sse_ping_interval=1,
        model="m",
    )
    assert (call.stream, call.include_usage, call.include_progress) == (True, True, True)
    assert call.fields == {"messages": HELLO, "max_tokens": 500}
    assert read_chat(stream=True, stream_options={}).include_usage is False


def test_choices_are_counted_as_tasks() -> None:
    call = read_chat(n=3)
    assert (call.n, call.tasks, call.fields["n"]) == (3, 3, 3)


A, B, C = tool("a", description="first"), tool("b"), tool("c")


def allowed(mode: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("choice", "tools", "sent", "may_call"),
    [
        (None, [A, B, C], None, True),
        ("auto", [A, B, C], "auto", True),
        ("required", [A, B, C], "required", True),
        ("none", [A, B, C], "none", False),
        (tool("b"), [B], "required", True),
        (allowed("auto", tool("a"), tool("c")), [A, C], "auto", True),
        (allowed("required", tool("c")), [C], "required", True),
    ],
    ids=str,
)
def test_a_tool_choice_is_made_by_the_tools_that_are_sent(
    choice: object, tools: list[dict[str, Any]], sent: str | None, *, may_call: bool
) -> None:
    call = read_chat(tools=[A, B, C], tool_choice=choice)
    assert (call.fields["tools"], call.fields.get("tool_choice"), call.tools) == (tools, sent, may_call)


@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_without_tools_a_harmless_choice_is_left_out(choice: str | None) -> None:
    call = read_chat(tools=[], tool_choice=choice)
    assert (call.tools, call.fields) == (False, {"messages": HELLO, "max_tokens": 500})


def test_a_grammar_goes_with_tools_that_must_not_be_called() -> None:
    assert read_chat(tools=[A], tool_choice="none", grammar="root ::= [a]").tools is False


def test_logprobs_with_tools_are_possible_without_a_stream() -> None:
    call = read_chat(tools=[A], logprobs=True)
    assert (call.tools, call.logprobs) == (True, True)


def test_n_probs_are_logprobs_too() -> None:
    assert read_chat(n_probs=3).logprobs is True
    assert read_chat(n_probs=0).logprobs is False


def test_text_comes_through_byte_for_byte() -> None:
    text = 'häß\u2028 "\\ \u0000 😀 \\ud83d'
    body = orjson.dumps({"messages": [{"role": "user", "content": text}]})
    call = parse(Endpoint.CHAT, body, lambda _: POLICY)
    assert orjson.loads(orjson.dumps(dict(call.fields)))["messages"][0]["content"] == text


def test_an_allowed_n_predict_is_a_limit_like_the_others() -> None:
    policy = Policy(default_max_tokens=500, allow_fields=frozenset({"n_predict"}))
    assert read_chat(policy, n_predict=3, max_tokens=9).fields == {"messages": HELLO, "max_tokens": 3}
    assert read_chat(policy, n_predict=-1).fields["max_tokens"] == 500
