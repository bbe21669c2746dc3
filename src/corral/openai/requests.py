"""The requests of the inference endpoints, as OpenAI defines them.

Types are strict: a number in quotation marks is not a number. Fields that no
model here knows are let through to llama-server. What depends on more than
one field stands in ``chat.py``, ``completions.py`` and ``embeddings.py``.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Le, Len, MinLen
from pydantic import ConfigDict

from corral.openai.messages import Messages
from corral.openai.response_format import ResponseFormat
from corral.openai.sampling import Addressed, Everyday, Generation, TokenLimit
from corral.openai.shapes import (
    ARRAY,
    BY_ITEM_SHAPE,
    BY_PROMPT_SHAPE,
    FIRST_ONLY,
    STRING,
    TOKENS,
    JsonObject,
    TokenIds,
)
from corral.openai.tools import ToolChoice, Tools

# Far above what an operator allows, which is counted later.
INPUTS = 65_536

Prompt = Annotated[Annotated[str, STRING] | Annotated[TokenIds, TOKENS], BY_ITEM_SHAPE]
Prompts = Annotated[
    Annotated[str, STRING] | Annotated[TokenIds, TOKENS] | Annotated[list[Prompt], FIRST_ONLY, Len(1, INPUTS), ARRAY],
    BY_PROMPT_SHAPE,
]

# llama-server refuses an input of no tokens.
Text = Annotated[str, MinLen(1), STRING]
Input = Annotated[Text | Annotated[TokenIds, TOKENS], BY_ITEM_SHAPE]
Inputs = Annotated[
    Text | Annotated[TokenIds, TOKENS] | Annotated[list[Input], FIRST_ONLY, Len(1, INPUTS), ARRAY],
    BY_PROMPT_SHAPE,
]


class EverydayChatRequest(Everyday):
    """A chat request that has no other fields: most have none, and to check these takes half the time."""

    messages: Messages
    """The conversation so far."""
    max_completion_tokens: TokenLimit | None = None
    """OpenAI's newer name of `max_tokens`; wins where both are given."""


class ChatRequest(EverydayChatRequest, Generation):
    """The body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "llama",
                    "messages": [{"role": "user", "content": "hello"}],
                    "temperature": 0.2,
                    "max_tokens": 64,
                }
            ]
        }
    )

    logprobs: bool | None = None
    """Return the log probabilities of the generated tokens."""
    top_logprobs: Annotated[int, Ge(0), Le(20)] | None = None
    """How many alternatives to list for each token; only with `logprobs: true`."""
    tools: Tools | None = None
    """The functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """`none`, `auto` (the default), `required`, one function by name, or some of them."""
    parallel_tool_calls: bool | None = None
    """The model may make several calls at once."""
    response_format: ResponseFormat | None = None
    """Hold the reply to JSON or to a schema."""
    reasoning_effort: Annotated[str, Len(1, 64)] | None = None
    """How much the model thinks, where its template knows it; `none` turns thinking off."""
    reasoning_format: Annotated[str, Len(1, 64)] | None = None
    """How llama-server returns thoughts: `none`, `auto`, `deepseek` or `deepseek-legacy`."""
    chat_template_kwargs: JsonObject | None = None
    """Parameters for the model's chat template."""
    prompt_cache_key: str | None = None
    """Keeps requests on one replica, where the operator has chosen the balance `sticky`; else without effect."""
    safety_identifier: str | None = None
    """Accepted and without effect."""
    service_tier: str | None = None
    """Accepted and without effect."""
    store: bool | None = None
    """Accepted and without effect: Corral stores no replies."""
    verbosity: str | None = None
    """Accepted and without effect."""
    prediction: JsonObject | None = None
    """Accepted and without effect: it would only save time, never change the reply."""


class CompletionRequest(Generation):
    """The body of `POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "llama", "prompt": "Once upon a time", "max_tokens": 32}]}
    )

    prompt: Prompts
    """A text, a text in token ids, or an array of either."""
    logprobs: Annotated[int, Ge(0), Le(5)] | None = None
    """How many alternatives to list for each token."""
    best_of: Annotated[int, Ge(1)] | None = None
    """Only as large as `n`: llama-server does not choose among more."""
    echo: bool | None = None
    """Only false: llama-server does not repeat the prompt."""
    suffix: str | None = None
    """Refused: llama-server does not insert."""


class EmbeddingRequest(Addressed):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "llama", "input": ["hello world"]}]})

    input: Inputs
    """A text, a text in token ids, or an array of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers, or little-endian 32-bit floats in base64."""
