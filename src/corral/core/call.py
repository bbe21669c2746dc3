"""What a client asks for, read once and frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Endpoint(Enum):
    """The inference endpoints; the value is the label in metrics, logs and settings."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    def __init__(self, label: str) -> None:
        # The value again: Enum's own ``value`` is written in Python, and orjson asks for it too.
        self.label = label

    # A member is one object; Enum's own hash is written in Python, and each request asks for a dozen of them.
    __hash__ = object.__hash__

    @property
    def path(self) -> str:
        return PATHS[self]


PATHS = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.COMPLETIONS: "/v1/completions",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A validated request in llama-server's terms.

    ``fields`` is the body as it may be sent upstream: traps mended, Corral's
    own fields (``stream``, ``stream_options``, …) taken out, ``max_tokens`` set.
    """

    endpoint: Endpoint
    # The name the client asked for; empty when it named none.
    model: str
    fields: Mapping[str, Any]
    stream: bool = False
    # The client asked for the usage chunk, or for prompt progress events.
    include_usage: bool = False
    include_progress: bool = False
    # Choices per prompt, and prompts (completions) or inputs (embeddings).
    n: int = 1
    inputs: int = 1
    max_tokens: int = 0
    # Else it is the operator's default.
    max_tokens_given: bool = True
    tools: bool = False
    logprobs: bool = False

    @property
    def tasks(self) -> int:
        """How many of llama-server's slots the call takes: one per choice of each prompt."""
        return self.n * self.inputs
