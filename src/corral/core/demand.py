"""What a call asks of the replica that is to take it."""

from collections.abc import Iterator
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.errors import ContextLengthExceeded, InvalidRequest
from corral.core.prefix import Prompt, is_compared, prompt_of
from corral.core.principal import Principal

# Some vocabularies have tokens of several words, of four at most (SuperBPE, arXiv 2503.13423); no other has them.
WORDS_IN_TOKEN = 4
# A token of English is longer, one of most other languages is not.
LIKELY_TOKEN_CHARS = 4
# A word and the space behind it, or a token's number and its comma: no request has more of them than this allows.
LEAST_BYTES = {
    Endpoint.CHAT: 2 * WORDS_IN_TOKEN,
    Endpoint.COMPLETIONS: 2,
    Endpoint.EMBEDDINGS: 2,
}
# Words are counted in so much of a text; more would take longer than it is worth.
COUNTED_CHARS = 2**20
# A larger request holds pictures or sound, which are not compared with others.
COMPARED_BYTES = 2**22

# Where a request holds its prompt.
PROMPTS = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}


class Demand:
    """A call and who makes it. What takes time to find out is found out when it is first asked for, and kept.

    One writer: itself. ``body_bytes`` is the size of the request that the call came in, or was cut from.
    """

    __slots__ = ("_prompt", "_tokens", "body_bytes", "call", "principal", "returns", "tasks")

    def __init__(self, call: Call, principal: Principal, body_bytes: int, *, returns: bool = False) -> None:
        self.call = call
        self.principal = principal
        self.body_bytes = body_bytes
        self.tasks = call.tasks
        # It had a slot already, and has lost it through no fault of its own: it is next.
        self.returns = returns
        self._prompt: Prompt | None = None
        self._tokens: tuple[int, int] | None = None

    @property
    def prompt(self) -> Prompt:
        if self._prompt is None:
            self._prompt = prompt_of(self.call)
        return self._prompt

    @property
    def compared(self) -> bool:
        """Where its prompt is cached can be foreseen."""
        return is_compared(self.call) and self.body_bytes <= COMPARED_BYTES

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
        if context is None or self.body_bytes <= context * LEAST_BYTES[self.call.endpoint]:
            # Most calls are so small that they need not be looked at.
            return True
        return self._measured()[0] <= context

    def likely_fits(self, context: int | None) -> bool:
        """As far as one can tell from the length of its text."""
        return context is None or self.body_bytes <= context or self._measured()[1] <= context

    def _measured(self) -> tuple[int, int]:
        """The tokens of the longest prompt: at least, and likely."""
        if self._tokens is None:
            least, likely = zip((0, 0), *_sizes(self.call), strict=True)
            self._tokens = max(least), max(likely)
        return self._tokens


def too_long(demand: Demand, context: int) -> ContextLengthExceeded:
    """A prompt that fits into no slot."""
    return ContextLengthExceeded(
        f"this model's maximum context length is {context} tokens and the prompt has at least "
        f"{demand.least_tokens()}; send a shorter one",
        param=PROMPTS[demand.call.endpoint],
    )


def too_many_tasks(tasks: int, slots: int) -> InvalidRequest:
    """A call that no replica can ever take; llama-server refuses it too (n must be at most its slots)."""
    return InvalidRequest(
        f"the request makes {tasks} tasks at once (prompts x n) and this model has {slots} slots; ask for no more",
        param="n",
        code="invalid_value",
    )


def _sizes(call: Call) -> Iterator[tuple[int, int]]:
    if call.endpoint is Endpoint.CHAT:
        yield _chat_size(call.fields.get("messages", ()))
        return
    given = call.fields.get(PROMPTS[call.endpoint])
    several = isinstance(given, list) and not all(isinstance(item, int) for item in given)
    for prompt in given if several and isinstance(given, list) else (given,):
        yield _size(prompt)


def _size(prompt: Any) -> tuple[int, int]:  # noqa: ANN401  (JSON)
    if isinstance(prompt, list):
        # Token ids.
        return len(prompt), len(prompt)
    if not isinstance(prompt, str):
        return 0, 0
    words = len(prompt[:COUNTED_CHARS].split())
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
