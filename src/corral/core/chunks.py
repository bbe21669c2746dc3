"""What Corral has to know of the events of a stream: few things, found without reading each one.

The byte tests are exact: inside a JSON string every quote is escaped, so
``usage":`` can only be the end of a key.
"""

from typing import Any

from corral.core.usage import Usage

HAS_USAGE = b'usage":'
HAS_PROGRESS = b'prompt_progress":'
HAS_ERROR = b'"error":'
HAS_MODEL = b'"model":'
HAS_FINISH = b'"finish_reason":"'

# llama-server begins a completion of several prompts with this.
NULL = b"null"


class UsageSum:
    """Sums the usage that llama-server reports per choice. One writer: the stream's callback.

    llama-server reports each choice of a stream apart, with the whole prompt
    counted each time: the prompt counts once per prompt, its choices all.
    """

    __slots__ = ("_cached", "_completion", "_n", "_prompt", "reports")

    def __init__(self, n: int) -> None:
        self._n = n
        self.reports = 0
        self._prompt = 0
        self._cached = 0
        self._completion = 0

    def add(self, usage: dict[str, Any]) -> None:
        """Take in one report, OpenAI's ``usage`` object; raises TypeError where it tells no counts."""
        details = usage.get("prompt_tokens_details") or {}
        told = Usage(usage.get("prompt_tokens", 0), details.get("cached_tokens", 0), usage.get("completion_tokens", 0))
        self.reports += 1
        self._prompt += told.prompt_tokens
        self._cached += told.cached_tokens
        self._completion += told.completion_tokens

    def total(self) -> Usage:
        """The usage of the whole call."""
        return Usage(self._prompt // self._n, self._cached // self._n, self._completion)


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's ``usage`` object, with the keys in llama-server's order."""
    return {
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
