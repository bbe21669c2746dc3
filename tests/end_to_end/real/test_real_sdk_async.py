"""The official SDK's asynchronous client in front of a real llama.cpp."""

import asyncio

import pytest
from openai import AsyncOpenAI, AuthenticationError
from openai.types.chat import ChatCompletionMessageParam

from support.gateway import KEY, Gateway
from support.run import async_test

pytestmark = pytest.mark.engine

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
# Two computations give the same text only if neither finds more of its prompt in the cache than the other.
SAME_WORK = {"cache_prompt": False}


def client_of(gateway: Gateway, key: str = KEY) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


@async_test
async def test_a_chat_whole_and_streamed(corral: Gateway) -> None:
    async with client_of(corral) as client:
        whole = await client.chat.completions.create(
            model="smol", messages=HELLO, temperature=0, max_tokens=20, extra_body=SAME_WORK
        )
        stream = await client.chat.completions.create(
            model="smol",
            messages=HELLO,
            temperature=0,
            max_tokens=20,
            extra_body=SAME_WORK,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert said == whole.choices[0].message.content
        assert whole.usage is not None
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 20


@async_test
async def test_several_at_once_are_all_answered(corral: Gateway) -> None:
    async with client_of(corral) as client, asyncio.TaskGroup() as tasks:
        chats = [
            tasks.create_task(client.chat.completions.create(model="smol", messages=HELLO, max_tokens=4))
            for _ in range(4)
        ]
        texts = tasks.create_task(client.completions.create(model="smol", prompt="Once", max_tokens=4))
        vectors = tasks.create_task(client.embeddings.create(model="smol", input=["a", "b", "c"]))
        models = tasks.create_task(client.models.retrieve("smol"))
    assert [chat.result().usage is not None for chat in chats] == [True] * 4
    assert len({chat.result()._request_id for chat in chats}) == 4
    assert texts.result().choices[0].finish_reason == "length"
    assert [each.index for each in vectors.result().data] == [0, 1, 2]
    assert models.result().id == "smol"


@async_test
async def test_an_error_has_its_class(corral: Gateway) -> None:
    async with client_of(corral, "wrong") as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.chat.completions.create(model="smol", messages=HELLO, stream=True)
    assert caught.value.code == "invalid_api_key"
