"""Tools, with a template that knows them and with one that does not."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from support.conversations import TIME, WEATHER, weather_talk
from support.gateway import KEY, Gateway

pytestmark = pytest.mark.engine

ASK: dict[str, Any] = {
    "model": "smol",
    "messages": weather_talk("Rome", "Oslo"),
    "tools": [WEATHER, TIME],
    "temperature": 0,
    "max_tokens": 60,
}
NAMED = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture
def client(corral: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{corral.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("auto", "get_weather"),
        ("required", "get_weather"),
        # llama-server itself takes every object for "auto".
        (NAMED, "get_time"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}, "get_time"),
    ],
    ids=["auto", "required", "named", "allowed"],
)
def test_the_tool_that_is_chosen_is_called(client: OpenAI, choice: Any, name: str) -> None:
    reply = client.chat.completions.create(**ASK, tool_choice=choice).choices[0]
    assert reply.finish_reason == "tool_calls"
    assert reply.message.tool_calls is not None
    (call,) = reply.message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert (call.type, call.function.name) == ("function", name)
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert call.id


def test_a_streamed_call_is_put_together_to_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASK).choices[0].message.tool_calls
    assert whole is not None
    with client.chat.completions.stream(**ASK) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        reply = stream.get_final_completion().choices[0]
    assert len(pieces) > 1
    assert reply.finish_reason == "tool_calls"
    assert reply.message.tool_calls is not None
    (streamed,), (gathered,) = reply.message.tool_calls, whole
    assert isinstance(gathered, ChatCompletionMessageFunctionToolCall)
    assert streamed.function.name == gathered.function.name
    assert streamed.function.arguments == gathered.function.arguments
    assert streamed.id != gathered.id


def test_a_tool_is_not_called_when_none_is_to_be(client: OpenAI) -> None:
    reply = client.chat.completions.create(**ASK | {"max_tokens": 20}, tool_choice="none").choices[0]
    assert not reply.message.tool_calls
    assert reply.message.content


def test_tools_are_refused_where_the_template_knows_none(demo: Gateway) -> None:
    with (
        OpenAI(base_url=f"{demo.url}/v1", api_key=KEY, max_retries=0) as client,
        pytest.raises(BadRequestError) as caught,
    ):
        client.chat.completions.create(**ASK)
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")
