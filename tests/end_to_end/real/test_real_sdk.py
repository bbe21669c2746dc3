"""The official SDK, unchanged, in front of a real llama.cpp: what it is told to expect of OpenAI it gets."""

from collections.abc import Iterator
from typing import Literal

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from support.embedded_engine import EmbeddedEngine
from support.gateway import KEY, Gateway

pytestmark = pytest.mark.engine

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
# Two computations give the same text only if neither finds more of its prompt in the cache than the other.
SAME_WORK = {"cache_prompt": False}


class City(BaseModel):
    """What a reply by schema has to be."""

    name: Literal["Paris", "Rome"]
    is_large: bool


@pytest.fixture
def client(corral: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{corral.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_a_chat_is_answered(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="smol", messages=HELLO, temperature=0, max_tokens=20)
    choice = reply.choices[0]
    assert (reply.object, reply.model, choice.message.role) == ("chat.completion", "smol", "assistant")
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 20
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 20
    assert reply._request_id is not None
    assert reply._request_id.startswith("req_")


def test_the_demo_answers_by_any_name(demo: Gateway) -> None:
    with OpenAI(base_url=f"{demo.url}/v1", api_key=KEY) as client:
        reply = client.chat.completions.create(model="gpt-4o", messages=HELLO, temperature=0)
        assert reply.choices[0].message.content == "Hello! How can I assist you today?"
        assert (reply.choices[0].finish_reason, reply.model) == ("stop", "gpt-4o")


def test_a_request_keeps_the_id_that_its_client_gave_it(client: OpenAI, corral: Gateway) -> None:
    reply = client.chat.completions.create(
        model="smol", messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "order-66"}
    )
    assert reply._request_id == "order-66"
    corral.until(lambda: "order-66" in [record["request_id"] for record in corral.records()], "recorded")


def test_a_stream_says_what_a_whole_reply_says(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="smol", messages=HELLO, temperature=0, max_tokens=24, extra_body=SAME_WORK
    )
    stream = client.chat.completions.create(
        model="smol", messages=HELLO, temperature=0, max_tokens=24, extra_body=SAME_WORK, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert {(chunk.model, chunk.object) for chunk in chunks} == {("smol", "chat.completion.chunk")}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert not any(chunk.usage for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_that_is_asked_for(client: OpenAI, corral: Gateway) -> None:
    stream = client.chat.completions.create(
        model="smol",
        messages=HELLO,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    *earlier, last = stream
    assert not any(chunk.usage for chunk in earlier)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 20
    corral.until(lambda: corral.records()[-1]["completion_tokens"] == 20, "recorded")


def test_the_sdk_gathers_a_stream_by_its_own_means(client: OpenAI) -> None:
    count: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Count: one, two, three"}]
    with client.chat.completions.stream(
        model="smol", messages=count, temperature=0, max_tokens=60, stop=",", stream_options={"include_usage": True}
    ) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        reply = stream.get_final_completion()
    assert said
    assert reply.choices[0].message.content == said
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None


def test_a_completion_takes_text_and_tokens_alike(client: OpenAI, engine: EmbeddedEngine) -> None:
    prompt = "The capital of France is"
    texts = [
        client.completions.create(
            model="smol", prompt=given, temperature=0, max_tokens=20, extra_body=SAME_WORK
        ).choices[0]
        for given in (prompt, engine.tokens(prompt))
    ]
    assert "Paris" in texts[0].text
    assert texts[0].text == texts[1].text
    assert texts[0].finish_reason == "length"


def test_a_completion_streams(client: OpenAI) -> None:
    stream = client.completions.create(
        model="smol", prompt="One, two, three,", temperature=0, max_tokens=20, stream=True
    )
    assert "four" in "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_several_prompts_are_answered_in_order(client: OpenAI, engine: EmbeddedEngine) -> None:
    prompts = ["The capital of France is", "One, two, three,", "The opposite of hot is"]
    reply = client.completions.create(model="smol", prompt=prompts, temperature=0, max_tokens=18, extra_body=SAME_WORK)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for word, choice in zip(("Paris", "four", "cold"), reply.choices, strict=True):
        assert word in choice.text
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3 * 18
    tokens = [engine.tokens(prompt) for prompt in prompts]
    assert reply.usage.prompt_tokens == sum(map(len, tokens))
    by_tokens = client.completions.create(
        model="smol", prompt=tokens, temperature=0, max_tokens=18, extra_body=SAME_WORK
    )
    assert [choice.text for choice in by_tokens.choices] == [choice.text for choice in reply.choices]


def test_two_choices_are_counted_as_two(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smol",
        messages=HELLO,
        n=2,
        temperature=1,
        max_tokens=20,
        logprobs=True,
        # The token that ends a reply is counted and has no logprobs.
        extra_body={"ignore_eos": True},
    )
    generated = [choice.logprobs.content or [] for choice in reply.choices if choice.logprobs]
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == sum(map(len, generated)) == 40
    texts = client.completions.create(model="smol", prompt="Once upon a time", n=2, max_tokens=18)
    assert [choice.index for choice in texts.choices] == [0, 1]
    assert texts.usage is not None
    assert texts.usage.completion_tokens > 18


def test_logprobs_cover_each_token(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smol", messages=HELLO, temperature=0, max_tokens=20, logprobs=True, top_logprobs=2
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == reply.choices[0].message.content
    assert {len(token.top_logprobs) for token in logprobs.content} == {2}
    assert all(token.logprob <= 0 for token in logprobs.content)


def test_a_stop_string_ends_a_reply_and_is_not_in_it(client: OpenAI) -> None:
    reply = client.completions.create(
        model="smol", prompt="One, two, three,", temperature=0, max_tokens=40, stop=[" six"]
    )
    assert reply.choices[0].finish_reason == "stop"
    assert "five" in reply.choices[0].text
    assert "six" not in reply.choices[0].text


def test_a_seed_makes_chance_repeatable(client: OpenAI) -> None:
    def dream(seed: int) -> str:
        return (
            client.completions.create(
                model="smol", prompt="I dreamt of", temperature=1.5, max_tokens=20, seed=seed, extra_body=SAME_WORK
            )
            .choices[0]
            .text
        )

    assert dream(7) == dream(7) != dream(8)


def test_a_schema_is_kept_to(client: OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="smol",
        messages=[{"role": "user", "content": "Answer in JSON: is Paris a large city?"}],
        temperature=0,
        max_tokens=60,
        response_format=City,
    )
    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(reply.choices[0].message.parsed, City)


def test_a_json_object_is_one(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": 'Answer with {"colour": "blue"}'}],
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_object"},
    )
    assert (reply.choices[0].message.content or "").lstrip().startswith("{")


def test_embeddings_are_the_same_in_each_encoding(client: OpenAI, engine: EmbeddedEngine) -> None:
    text = "a horse in a corral"
    # Without an encoding the SDK asks for base64, and reads it.
    packed = client.embeddings.create(model="smol", input=text)
    plain = client.embeddings.create(model="smol", input=text, encoding_format="float")
    by_tokens = client.embeddings.create(model="smol", input=engine.tokens(text), encoding_format="float")
    assert len(packed.data[0].embedding) == 576
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert by_tokens.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens == len(engine.tokens(text))


def test_embeddings_of_a_list_come_in_its_order(client: OpenAI, engine: EmbeddedEngine) -> None:
    texts = ["a horse", "a stone", "a river"]
    alone = [client.embeddings.create(model="smol", input=text).data[0].embedding for text in texts]
    for given in (texts, [engine.tokens(text) for text in texts]):
        together = client.embeddings.create(model="smol", input=given)
        assert [each.index for each in together.data] == [0, 1, 2]
        for one, other in zip(alone, together.data, strict=True):
            assert other.embedding == pytest.approx(one, abs=1e-3)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smol"]
    model = client.models.retrieve("smol")
    assert (model.id, model.object) == ("smol", "model")
    assert model.model_extra is not None
    assert model.model_extra["context_length"] == 1024
