"""Tokens that an exchange took."""

from dataclasses import dataclass
from operator import index


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts over all choices; ``estimated`` when llama-server did not tell them (a cut stream).

    Raises TypeError for what is no count: an upstream may tell anything, and who reckons with it cannot refuse it.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    def __post_init__(self) -> None:
        index(self.prompt_tokens)
        index(self.cached_tokens)
        index(self.completion_tokens)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            estimated=self.estimated or other.estimated,
        )
