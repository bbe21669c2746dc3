"""What tokens cost, for whoever passes it on."""

from dataclasses import dataclass

PER_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens of prompts, of those of them that were in the cache, and of replies; in any currency."""

    prompt: float = 0.0
    # None: as those that were not.
    cached: float | None = None
    completion: float = 0.0

    def of(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """What an exchange costs; the cached tokens are among those of the prompt."""
        cached = self.prompt if self.cached is None else self.cached
        read = (prompt_tokens - cached_tokens) * self.prompt + cached_tokens * cached
        return (read + completion_tokens * self.completion) / PER_TOKENS


FREE = Price()
