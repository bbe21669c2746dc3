"""The replies of the endpoints, as OpenAI defines them and llama-server fills them.

They describe the API and check it in tests; a reply on its way to a client is
never read into them. llama-server's additions (``timings``, …) are let through.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Shape(BaseModel):
    """A piece of a reply; llama-server may add fields."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True, defer_build=True)


class PromptTokensDetails(Shape):
    """More about the tokens of the prompt."""

    cached_tokens: int = 0
    """Tokens that were remembered from an earlier prompt."""


class Usage(Shape):
    """The tokens of the whole request, summed over all choices."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None
    """Missing for embeddings."""
    prompt_tokens_details: PromptTokensDetails | None = None


class CalledFunction(Shape):
    """The function called, and with what."""

    name: str
    arguments: str
    """The arguments as JSON text."""


class ToolCall(Shape):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class TokenLogprob(Shape):
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["TokenLogprob"] = []


class Logprobs(Shape):
    """The log probabilities of a choice's tokens."""

    content: list[TokenLogprob] | None = None


class ReplyMessage(Shape):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None = None
    reasoning_content: str | None = None
    """The model's thoughts, where it has any."""
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shape):
    """One of `n` replies."""

    index: int
    message: ReplyMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None


class ChatCompletion(Shape):
    """The reply of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    """The name the client asked for."""
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class FunctionDelta(Shape):
    """More of a called function: the name comes once, the arguments in pieces."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Shape):
    """More of the call number `index`."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class Delta(Shape):
    """What is new since the chunk before."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Shape):
    """More of the choice number `index`."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    """Null until the choice is finished."""
    logprobs: Logprobs | None = None


class ChatCompletionChunk(Shape):
    """One event of a chat stream; the stream ends with `data: [DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    """Empty in the chunk that tells the usage."""
    usage: Usage | None = None
    """In the last chunk, if asked for with `stream_options.include_usage`."""
    system_fingerprint: str | None = None


class CompletionChoice(Shape):
    """One text; `index` counts the choices of all prompts in order."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: dict[str, Any] | None = None


class Completion(Shape):
    """The reply of `POST /v1/completions`, and the events of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    """Always there in a whole reply."""
    system_fingerprint: str | None = None


class Embedding(Shape):
    """The embedding of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or little-endian 32-bit floats in base64."""


class EmbeddingList(Shape):
    """The reply of `POST /v1/embeddings`."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Model(Shape):
    """A model that can be asked for."""

    id: str
    """The name to use as `model`."""
    object: Literal["model"] = "model"
    created: int
    """When it was configured, in Unix seconds."""
    owned_by: str
    context_length: int | None = None
    """Tokens that a prompt and its reply may have together; null while that is not known."""


class ModelList(Shape):
    """The reply of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(Shape):
    """What went wrong."""

    message: str
    type: str
    """The kind of error, such as `invalid_request_error` or `server_error`."""
    param: str | None
    """The parameter that was wrong, as a path: `messages[0].content`."""
    code: str | None
    """The exact error, for programs."""


class ErrorReply(Shape):
    """Every error of every endpoint has this shape; in a stream it is the last event."""

    error: ErrorDetail
