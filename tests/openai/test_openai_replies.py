"""The models of replies take what llama-server sends, and the description of the API is complete."""

from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError

from corral.openai import replies
from corral.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest

USAGE = {
    "completion_tokens": 3,
    "prompt_tokens": 31,
    "total_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 30},
}
HEAD = {"created": 1795362944, "model": "smol", "system_fingerprint": "b11434-abc", "id": "chatcmpl-TQxQIeYM"}
LOGPROB = {
    "id": 28,
    "token": ",",
    "bytes": [44],
    "logprob": -2.1,
    "top_logprobs": [{"id": 29, "token": "-", "bytes": [45], "logprob": -1.4}],
}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}, "id": "x1"}

# As a real llama-server b11434 sent them.
SAMPLES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (
        replies.ChatCompletion,
        {
            "choices": [
                {"finish_reason": "length", "index": 0, "message": {"role": "assistant", "content": "Hello there."}}
            ],
            **HEAD,
            "object": "chat.completion",
            "usage": USAGE,
            "timings": {"cache_n": 30, "prompt_n": 1},
        },
    ),
    (
        replies.ChatCompletion,
        {
            "choices": [
                {
                    "finish_reason": "tool_calls",
                    "index": 0,
                    "message": {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
                    "logprobs": {"content": [LOGPROB]},
                }
            ],
            **HEAD,
            "object": "chat.completion",
            "usage": USAGE,
        },
    ),
    (
        replies.ChatCompletionChunk,
        {
            "choices": [{"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}],
            **HEAD,
            "object": "chat.completion.chunk",
        },
    ),
    (
        replies.ChatCompletionChunk,
        {
            "choices": [
                {
                    "finish_reason": None,
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
                }
            ],
            **HEAD,
            "object": "chat.completion.chunk",
        },
    ),
    (
        replies.ChatCompletionChunk,
        {"choices": [], **HEAD, "object": "chat.completion.chunk", "usage": USAGE, "timings": {}},
    ),
    (
        replies.Completion,
        {
            "choices": [
                {"text": ", we", "index": 0, "logprobs": None, "finish_reason": "length"},
                {"text": ", ", "index": 1, "logprobs": {"content": [LOGPROB]}, "finish_reason": "stop"},
            ],
            **HEAD,
            "object": "text_completion",
            "usage": USAGE,
        },
    ),
    (
        replies.EmbeddingList,
        {
            "model": "smol",
            "object": "list",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "data": [
                {"embedding": [-0.0123, 0.5, 0], "index": 0, "object": "embedding"},
                {"embedding": "AACAPw==", "index": 1, "object": "embedding", "encoding_format": "base64"},
            ],
        },
    ),
    (
        replies.ModelList,
        {
            "object": "list",
            "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "corral", "context_length": None}],
        },
    ),
    (replies.ErrorReply, {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}),
]


@pytest.mark.parametrize(("model", "sample"), SAMPLES, ids=lambda value: getattr(value, "__name__", None))
def test_a_reply_is_what_its_model_says(model: type[BaseModel], sample: dict[str, Any]) -> None:
    read = model.model_validate(sample)
    assert read.model_dump(mode="json", exclude_unset=True) == sample


@pytest.mark.parametrize(("model", "sample"), SAMPLES, ids=lambda value: getattr(value, "__name__", None))
def test_a_reply_that_lacks_a_part_is_found_out(model: type[BaseModel], sample: dict[str, Any]) -> None:
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    assert required
    for name in required:
        with pytest.raises(ValidationError):
            model.model_validate({key: value for key, value in sample.items() if key != name})


def described() -> dict[str, Any]:
    """FastAPI's description of an app that takes and gives these models."""
    app = FastAPI()

    @app.post("/chat", response_model=replies.ChatCompletion, responses={400: {"model": replies.ErrorReply}})
    def chat(request: ChatRequest) -> None: ...

    @app.post("/completions", response_model=replies.Completion)
    def complete(request: CompletionRequest) -> None: ...

    @app.post("/embeddings", response_model=replies.EmbeddingList)
    def embed(request: EmbeddingRequest) -> None: ...

    schemas: dict[str, Any] = app.openapi()["components"]["schemas"]
    return schemas


def test_fastapi_describes_requests_and_replies() -> None:
    schemas = described()
    assert {"ChatRequest", "CompletionRequest", "EmbeddingRequest", "ChatCompletion", "ErrorReply"} <= schemas.keys()
    assert schemas["ChatRequest"]["required"] == ["messages"]


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, EmbeddingRequest], ids=lambda model: model.__name__)
def test_every_field_of_a_request_is_described_and_an_example_is_given(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    silent = [name for name, field in schema["properties"].items() if not field.get("description")]
    assert not silent
    assert schema["description"]
    for example in schema["examples"]:
        model.model_validate(example)


def test_the_description_names_the_shapes_of_a_union() -> None:
    stop = ChatRequest.model_json_schema()["properties"]["stop"]
    shapes = stop["anyOf"][0]["oneOf"]
    assert [shape["type"] for shape in shapes] == ["string", "array"]
