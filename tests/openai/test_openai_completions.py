"""What becomes of good completion and embedding requests."""

from typing import Any

import pytest

from corral.core.call import Endpoint
from support.parsing import read_completion, read_embedding

PROMPTS: list[tuple[Any, int]] = [
    ("once", 1),
    (["once"], 1),
    (["once", "twice"], 2),
    ([1, 2, 3], 1),
    ([[1, 2], [3]], 2),
    ([[1, 2], "twice"], 2),
    (["a"] * 8, 8),
    (list(range(1000)), 1),
]


@pytest.mark.parametrize(("prompt", "count"), PROMPTS, ids=lambda value: str(value)[:30])
def test_prompts_of_every_shape_are_sent_as_they_are_and_counted(prompt: object, count: int) -> None:
    call = read_completion(prompt=prompt)
    assert (call.fields, call.inputs) == ({"prompt": prompt, "max_tokens": 500}, count)
    assert (call.endpoint, call.max_tokens) == (Endpoint.COMPLETIONS, 500)


@pytest.mark.parametrize(("inputs", "count"), PROMPTS, ids=lambda value: str(value)[:30])
def test_embedding_inputs_of_every_shape_are_sent_as_they_are_and_counted(inputs: object, count: int) -> None:
    call = read_embedding(input=inputs)
    assert (call.fields, call.inputs) == ({"input": inputs}, count)
    assert (call.endpoint, call.n, call.max_tokens, call.stream) == (Endpoint.EMBEDDINGS, 1, 0, False)


def test_an_empty_prompt_is_a_prompt() -> None:
    assert read_completion(prompt="").inputs == 1


def test_a_call_takes_a_slot_for_each_choice_of_each_prompt() -> None:
    assert read_completion(prompt=["a", "b"], n=3).tasks == 6


def test_what_openai_has_and_llama_server_need_not_know_is_left_out() -> None:
    call = read_completion(best_of=2, n=2, echo=False, suffix=None, logprobs=None)
    assert call.fields == {"prompt": "once", "n": 2, "max_tokens": 500}


def test_no_alternatives_are_asked_for_as_one_since_llama_server_takes_none_for_no_logprobs() -> None:
    call = read_completion(logprobs=0)
    assert (call.fields["logprobs"], call.logprobs) == (1, True)
    assert read_completion(logprobs=5).fields["logprobs"] == 5
    assert read_completion().logprobs is False


def test_a_completion_stream_is_corrals_own_affair() -> None:
    call = read_completion(stream=True, stream_options={"include_usage": True}, return_progress=False, stop="")
    assert (call.stream, call.include_usage, call.include_progress) == (True, True, False)
    assert call.fields == {"prompt": "once", "max_tokens": 500}


def test_an_allowed_limit_of_minus_one_means_the_default() -> None:
    assert read_completion(max_tokens=-1).fields["max_tokens"] == 500


@pytest.mark.parametrize(
    "fields",
    [
        {"encoding_format": "base64"},
        {"encoding_format": "float", "user": "u"},
        {"embd_normalize": 2},
        {"stream": False},
    ],
    ids=str,
)
def test_fields_of_embeddings_pass(fields: dict[str, Any]) -> None:
    expected = {key: value for key, value in fields.items() if key != "stream"}
    assert read_embedding(**fields).fields == {"input": "once", **expected}


def test_an_embedding_request_may_name_no_model() -> None:
    assert read_embedding().model == ""
    assert read_embedding(model=None).model == ""
    assert read_embedding(model="m").model == "m"
