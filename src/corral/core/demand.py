"""What a call asks of the replica that is to take it."""

from collections.abc import Iterator
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.prefix import Prompt, prompt_of
from corral.core.principal import Principal

# Some vocabularies have tokens of several words, of four at most (SuperBPE, arXiv 2503.13423); no other has them.
WORDS_IN_TOKEN = 4
# A token of English is longer, one of most other languages is not.
LIKELY_TOKEN_CHARS = 4


class Demand:
    """A call and who makes it. What takes time to find out is found out when it is first asked for, and kept.

    One writer: itself. ``body_bytes`` is the size of the request that the call came in, or was cut from.
    """

    __slots__ = ("_prompt", "_text", "body_bytes", "call", "principal", "tasks")

    def __init__(self, call: Call, principal: Principal, body_bytes: int) -> None:
        self.call = call
        self.principal = principal
        self.body_bytes = body_bytes
        self.tasks = call.tasks
        self._prompt: Prompt | None = None
        self._text: tuple[int, int] | None = None

    @property
    def prompt(self) -> Prompt:
        if self._prompt is None:
            self._prompt = prompt_of(self.call)
        return self._prompt

    @property
    def sticky_key(self) -> str:
        """What keeps calls of one conversation, or else of one client, together."""
        key = self.call.fields.get("prompt_cache_key")
        return key if isinstance(key, str) and key else self.principal.client

    def least_tokens(self) -> int:
        """Tokens that the longest prompt has at least, whatever the model's vocabulary and template are."""
        return self._measured()[0]

    def may_fit(self, context: int | None) -> bool:
        """It cannot be ruled out that each prompt fits into a slot of so many tokens; None is a size not known."""
        # A token takes more than a byte of JSON, so most calls are not looked at.
        return context is None or self.body_bytes <= context or self._measured()[0] <= context

    def likely_fits(self, context: int | None) -> bool:
        return context is None or self.body_bytes <= context or self._measured()[1] <= context

    def _measured(self) -> tuple[int, int]:
        """The tokens of the longest prompt: at least, and likely."""
        if self._text is None:
            sizes = list(_sizes(self.call))
            self._text = (max((size[0] for size in sizes), default=0), max((size[1] for size in sizes), default=0))
        return self._text


def _sizes(call: Call) -> Iterator[tuple[int, int]]:
    if call.endpoint is Endpoint.CHAT:
        yield _chat_size(call.fields.get("messages", ()))
        return
    given = call.fields.get("input" if call.endpoint is Endpoint.EMBEDDINGS else "prompt")
    several = isinstance(given, list) and not all(isinstance(item, int) for item in given)
    for prompt in given if several and isinstance(given, list) else (given,):
        yield _size(prompt)


def _size(prompt: Any) -> tuple[int, int]:  # noqa: ANN401  (JSON)
    if isinstance(prompt, list):
        # Token ids.
        return len(prompt), len(prompt)
    if not isinstance(prompt, str):
        return 0, 0
    words = len(prompt.split())
    return words // WORDS_IN_TOKEN, max(words, len(prompt) // LIKELY_TOKEN_CHARS)


def _chat_size(messages: Any) -> tuple[int, int]:  # noqa: ANN401  (JSON)
    """Templates drop thoughts, and some drop what a system says; what a user says is in the prompt."""
    least = likely = 0
    for message in messages:
        for text in _texts(message.get("content")):
            sizes = _size(text)
            least += sizes[0] if message.get("role") == "user" else 0
            likely += sizes[1]
    return least, likely


def _texts(content: Any) -> Iterator[str]:  # noqa: ANN401  (JSON)
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if part.get("type") == "text")
