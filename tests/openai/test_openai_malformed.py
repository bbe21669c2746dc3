"""Requests that are wrong, and what each is told: the status, the parameter and the code."""

from typing import Any

import orjson
import pytest

from corral.core.call import Endpoint
from support.parsing import HELLO, refused, tool

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWER = {"role": "assistant", "content": "yes"}

MISSING = "missing_required_parameter"
TYPE = "invalid_type"
VALUE = "invalid_value"
UNSUPPORTED = "unsupported_parameter"

Case = tuple[dict[str, Any], str, str]

# What is added to a good request, the parameter that is named, and the code.
CHAT: list[Case] = [
    ({"messages": None}, "messages", TYPE),
    ({"messages": "hello"}, "messages", TYPE),
    ({"messages": []}, "messages", VALUE),
    ({"messages": [5]}, "messages[0]", TYPE),
    ({"messages": [{"content": "a"}]}, "messages[0].role", MISSING),
    ({"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role", VALUE),
    ({"messages": [{"role": 5, "content": "a"}]}, "messages[0].role", TYPE),
    ({"messages": [{"role": "user"}]}, "messages[0].content", MISSING),
    ({"messages": [{"role": "system", "content": None}]}, "messages[0].content", MISSING),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", TYPE),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", VALUE),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", TYPE),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", MISSING),
    ({"messages": [{"role": "user", "content": [{"type": 5}]}]}, "messages[0].content[0].type", TYPE),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0].type", VALUE),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", MISSING),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text", TYPE),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]},
        "messages[0].content[0].image_url",
        TYPE,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
        MISSING,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "wav"}}]}]},
        "messages[0].content[0].input_audio.data",
        MISSING,
    ),
    ({"messages": [*HELLO, {"role": "assistant"}]}, "messages[1].content", MISSING),
    ({"messages": [*HELLO, {"role": "assistant", "tool_calls": []}]}, "messages[1].content", MISSING),
    ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [5]}]}, "messages[1].tool_calls[0]", TYPE),
    (
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"type": "function"}]}]},
        "messages[1].tool_calls[0].function",
        MISSING,
    ),
    (
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}]},
        "messages[1].tool_calls[0].type",
        VALUE,
    ),
    ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0].tool_call_id", MISSING),
    ({"messages": [{"role": "tool", "content": "5", "tool_call_id": 5}]}, "messages[0].tool_call_id", TYPE),
    ({"messages": [*HELLO, ANSWER, ANSWER]}, "messages", VALUE),
    ({"messages": HELLO * 10_001}, "messages", VALUE),
    ({"model": 5}, "model", TYPE),
    ({"model": "a" * 257}, "model", VALUE),
    ({"model": "a\nb"}, "model", VALUE),
    ({"max_tokens": "5"}, "max_tokens", TYPE),
    ({"max_tokens": 5.5}, "max_tokens", TYPE),
    ({"max_tokens": True}, "max_tokens", TYPE),
    ({"max_tokens": -2}, "max_tokens", VALUE),
    ({"max_tokens": 2**31}, "max_tokens", VALUE),
    ({"max_completion_tokens": -2}, "max_completion_tokens", VALUE),
    ({"temperature": "0.2"}, "temperature", TYPE),
    ({"temperature": True}, "temperature", TYPE),
    ({"temperature": -0.1}, "temperature", VALUE),
    ({"temperature": 2.1}, "temperature", VALUE),
    ({"top_p": 1.1}, "top_p", VALUE),
    ({"top_p": [1]}, "top_p", TYPE),
    ({"presence_penalty": -3}, "presence_penalty", VALUE),
    ({"frequency_penalty": 3}, "frequency_penalty", VALUE),
    ({"n": 0}, "n", VALUE),
    ({"n": 129}, "n", VALUE),
    ({"n": "2"}, "n", TYPE),
    ({"n_cmpl": 2}, "n_cmpl", UNSUPPORTED),
    ({"seed": "1"}, "seed", TYPE),
    ({"seed": 2**63}, "seed", VALUE),
    ({"stop": 5}, "stop", TYPE),
    ({"stop": ["a", 5]}, "stop[1]", TYPE),
    ({"stop": ["a"] * 65}, "stop", VALUE),
    ({"stop": "a" * 1025}, "stop", VALUE),
    ({"stop": ["a" * 1025]}, "stop[0]", VALUE),
    ({"stream": "yes"}, "stream", TYPE),
    ({"stream": 1}, "stream", TYPE),
    ({"stream_options": {"include_usage": True}}, "stream_options", VALUE),
    ({"stream": False, "stream_options": {}}, "stream_options", VALUE),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", TYPE),
    ({"stream": True, "stream_options": True}, "stream_options", TYPE),
    ({"logit_bias": 5}, "logit_bias", TYPE),
    ({"logit_bias": {"5": "high"}}, "logit_bias.5", TYPE),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", VALUE),
    ({"logit_bias": {"5": True}}, "logit_bias.5", TYPE),
    ({"logit_bias": {str(token): 1 for token in range(4097)}}, "logit_bias", VALUE),
    ({"logit_bias": [[5]]}, "logit_bias[0][1]", MISSING),
    ({"logit_bias": [[5, 1, 1]]}, "logit_bias[0]", VALUE),
    ({"logit_bias": [5]}, "logit_bias[0]", TYPE),
    ({"logit_bias": [[None, 1]]}, "logit_bias[0][0]", TYPE),
    ({"logprobs": 5}, "logprobs", TYPE),
    ({"top_logprobs": 5}, "top_logprobs", VALUE),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", VALUE),
    ({"logprobs": True, "stream": True, "tools": [tool("f")]}, "logprobs", VALUE),
    ({"tools": {}}, "tools", TYPE),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", VALUE),
    ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", MISSING),
    ({"tools": [tool("")]}, "tools[0].function.name", VALUE),
    ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", TYPE),
    ({"tools": [tool("f")] * 513}, "tools", VALUE),
    ({"tool_choice": "required"}, "tool_choice", VALUE),
    ({"tools": [], "tool_choice": tool("f")}, "tool_choice", VALUE),
    ({"tools": [tool("f")], "tool_choice": "always"}, "tool_choice", VALUE),
    ({"tools": [tool("f")], "tool_choice": 5}, "tool_choice", TYPE),
    ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "tool_choice.function", MISSING),
    ({"tools": [tool("f")], "tool_choice": {"type": "tool"}}, "tool_choice.type", VALUE),
    ({"tools": [tool("f")], "tool_choice": {}}, "tool_choice.type", MISSING),
    ({"tools": [tool("f")], "tool_choice": tool("g")}, "tool_choice.function.name", VALUE),
    (
        {
            "tools": [tool("f")],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [tool("f"), tool("g")]},
            },
        },
        "tool_choice.allowed_tools.tools[1].function.name",
        VALUE,
    ),
    (
        {
            "tools": [tool("f")],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [tool("f")]}},
        },
        "tool_choice.allowed_tools.mode",
        VALUE,
    ),
    ({"tools": [tool("f")], "grammar": "root ::= [a]"}, "grammar", VALUE),
    ({"grammar": "root ::= [a]", "json_schema": {}}, "grammar", VALUE),
    ({"grammar": "a" * 65_537}, "grammar", VALUE),
    ({"json_schema": "{}"}, "json_schema", TYPE),
    ({"response_format": "json"}, "response_format", TYPE),
    ({"response_format": {}}, "response_format.type", MISSING),
    ({"response_format": {"type": "xml"}}, "response_format.type", VALUE),
    ({"response_format": {"type": "json_schema", "schema": {}}}, "response_format.json_schema", MISSING),
    ({"response_format": {"type": "json_object", "schema": 5}}, "response_format.schema", TYPE),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        "response_format.json_schema.schema",
        TYPE,
    ),
    ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "grammar", VALUE),
    ({"response_format": {"type": "json_object"}, "json_schema": {}}, "json_schema", VALUE),
    ({"functions": [{"name": "f"}]}, "functions", UNSUPPORTED),
    ({"function_call": "auto"}, "function_call", UNSUPPORTED),
    ({"audio": {"voice": "alloy"}}, "audio", UNSUPPORTED),
    ({"modalities": ["text", "audio"]}, "modalities", UNSUPPORTED),
    ({"modalities": "text"}, "modalities", UNSUPPORTED),
    ({"web_search_options": {}}, "web_search_options", UNSUPPORTED),
    ({"metadata": {"a": 5}}, "metadata.a", TYPE),
    ({"metadata": {"a": "b" * 513}}, "metadata.a", VALUE),
    ({"metadata": {"a" * 65: "b"}}, "metadata." + "a" * 64, VALUE),
    ({"metadata": {str(key): "b" for key in range(17)}}, "metadata", VALUE),
    ({"reasoning_effort": 5}, "reasoning_effort", TYPE),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", TYPE),
    ({"user": 5}, "user", TYPE),
    ({"top_k": 1.5}, "top_k", TYPE),
    ({"min_p": 2}, "min_p", VALUE),
    ({"samplers": ["top_k"] * 65}, "samplers", VALUE),
    ({"samplers": 5}, "samplers", TYPE),
    ({"repeat_last_n": 2**31 - 1}, "repeat_last_n", VALUE),
    ({"dry_penalty_last_n": 2**31 - 1}, "dry_penalty_last_n", VALUE),
    ({"n_probs": 1000}, "n_probs", VALUE),
    ({"ignore_eos": "yes"}, "ignore_eos", TYPE),
    ({f"field{index}": 1 for index in range(520)}, "", VALUE),
]

COMPLETIONS: list[Case] = [
    ({"prompt": None}, "prompt", TYPE),
    ({"prompt": 5}, "prompt", TYPE),
    ({"prompt": {"prompt_string": "a"}}, "prompt", TYPE),
    ({"prompt": []}, "prompt", VALUE),
    ({"prompt": [[]]}, "prompt[0]", VALUE),
    ({"prompt": [1, "a"]}, "prompt[1]", TYPE),
    ({"prompt": ["a", 1]}, "prompt[1]", TYPE),
    ({"prompt": [-1]}, "prompt[0]", VALUE),
    ({"prompt": [1.5]}, "prompt[0]", TYPE),
    ({"prompt": [[1], [True]]}, "prompt[1][0]", TYPE),
    ({"prompt": [None]}, "prompt[0]", TYPE),
    ({"prompt": ["a"] * 9}, "prompt", VALUE),
    ({"best_of": 2}, "best_of", UNSUPPORTED),
    ({"best_of": 1, "n": 2}, "best_of", UNSUPPORTED),
    ({"best_of": 0}, "best_of", VALUE),
    ({"echo": True}, "echo", UNSUPPORTED),
    ({"echo": "yes"}, "echo", TYPE),
    ({"suffix": "end"}, "suffix", UNSUPPORTED),
    ({"response_format": {"type": "json_object"}}, "response_format", UNSUPPORTED),
    ({"n_cmpl": 2}, "n_cmpl", UNSUPPORTED),
    ({"logprobs": True}, "logprobs", TYPE),
    ({"logprobs": 6}, "logprobs", VALUE),
    ({"stream_options": {}}, "stream_options", VALUE),
    ({"grammar": "root ::= [a]", "json_schema": {}}, "grammar", VALUE),
    ({"max_tokens": -5}, "max_tokens", VALUE),
]

EMBEDDINGS: list[Case] = [
    ({"input": None}, "input", TYPE),
    ({"input": 5}, "input", TYPE),
    ({"input": ""}, "input", VALUE),
    ({"input": []}, "input", VALUE),
    ({"input": ["a", ""]}, "input[1]", VALUE),
    ({"input": ["a", None]}, "input[1]", TYPE),
    ({"input": [[1], []]}, "input[1]", VALUE),
    ({"input": ["a"] * 9}, "input", VALUE),
    ({"encoding_format": "int8"}, "encoding_format", VALUE),
    ({"encoding_format": 5}, "encoding_format", TYPE),
    ({"dimensions": 256}, "dimensions", UNSUPPORTED),
    ({"content": "a"}, "content", UNSUPPORTED),
    ({"stream": True}, "stream", UNSUPPORTED),
    ({"model": ["a"]}, "model", TYPE),
]

GOOD: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"model": "llama", "messages": HELLO},
    Endpoint.COMPLETIONS: {"model": "llama", "prompt": "once"},
    Endpoint.EMBEDDINGS: {"model": "llama", "input": "once"},
}

CASES = [
    *((Endpoint.CHAT, *case) for case in CHAT),
    *((Endpoint.COMPLETIONS, *case) for case in COMPLETIONS),
    *((Endpoint.EMBEDDINGS, *case) for case in EMBEDDINGS),
]


def name_of(value: object) -> str | None:
    if isinstance(value, Endpoint):
        return value.value
    return str(value)[:60] if isinstance(value, dict) else None


@pytest.mark.parametrize(("endpoint", "change", "param", "code"), CASES, ids=name_of)
def test_a_malformed_request_is_refused_naming_the_parameter(
    endpoint: Endpoint, change: dict[str, Any], param: str, code: str
) -> None:
    error = refused(endpoint, orjson.dumps(GOOD[endpoint] | change))
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.param or "", error.code) == (param, code)
    assert f"'{param}'" in error.message or not param
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [(Endpoint.CHAT, "messages"), (Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")],
)
def test_an_empty_object_lacks_what_the_endpoint_needs(endpoint: Endpoint, param: str) -> None:
    error = refused(endpoint, b"{}")
    assert (error.param, error.code) == (param, MISSING)
    assert error.message == f"'{param}' is required"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 3}, "'temperature' must be 2 or less, not 3"),
        ({"temperature": "hot"}, "'temperature' must be a number, not a string"),
        ({"n": 0}, "'n' must be 1 or more, not 0"),
        ({"stop": {}}, "'stop' must be a string or an array, not an object"),
        ({"logit_bias": {"5": None}}, "'logit_bias.5' must be a number or false, not null"),
        ({"stop": [None]}, "'stop[0]' must be a string, not null"),
        ({"messages": []}, "'messages' must not be empty"),
        (
            {"messages": [{"role": "x", "content": ""}]},
            "'messages[0].role' must be 'system', 'developer', 'user', 'assistant', 'tool' or 'function'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
            "'messages[0].content[0].type' must be 'text', 'image_url', 'input_audio', 'video_url' or 'input_video'",
        ),
        ({"tools": [tool("f")] * 600}, "'tools' must have at most 512 entries"),
        ({"id_slot": 1}, "'id_slot' is internal to the model server and not allowed for this model; leave it out"),
        ({"functions": []}, "'functions' is not supported: use 'tools'"),
    ],
    ids=str,
)
def test_the_message_says_what_is_wrong_and_what_would_be_right(change: dict[str, Any], message: str) -> None:
    assert refused(Endpoint.CHAT, orjson.dumps(GOOD[Endpoint.CHAT] | change)).message == message


def test_of_several_mistakes_one_is_told() -> None:
    error = refused(Endpoint.CHAT, orjson.dumps({"messages": [{"role": "x"}, {"role": "y"}], "model": "a", "n": 0}))
    assert error.param == "n"


def test_what_the_client_sent_is_not_repeated() -> None:
    secret = "hunter2" * 100
    for change in ({"stop": {"a": secret}}, {"temperature": secret}, {"encoding_format": secret}, {"model": [secret]}):
        assert "hunter2" not in refused(Endpoint.EMBEDDINGS, orjson.dumps({"input": 5, **change})).message
