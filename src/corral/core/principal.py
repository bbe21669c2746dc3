"""Who is asking, and what it may do."""

from dataclasses import dataclass
from enum import Enum, IntEnum
from fnmatch import fnmatchcase


class Priority(IntEnum):
    """Whose calls go first where calls have to wait: the lower number. The operator says so, never the client."""

    INTERACTIVE = 0
    DEFAULT = 1
    BATCH = 2

    def __init__(self, _: int) -> None:
        # Each exchange tells it to the log.
        self.label = self.name.lower()


class Scope(Enum):
    """What a key opens; the value is its name in commands and in the store."""

    INFERENCE = "inference"
    # Addresses in /health, what becomes of models, keys, everybody's usage.
    ADMIN = "admin"
    METRICS = "metrics"


INFERENCE = frozenset({Scope.INFERENCE})
OPERATOR = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may be asked for; None is not said here, 0 is no limit.

    ``requests`` and ``tokens`` (of prompts and replies together) count in a sliding window, ``tokens_day`` and
    ``tokens_month`` in calendar days and months of UTC; ``max_context`` is a prompt with its reply.
    """

    requests: int | None = None
    tokens: int | None = None
    in_flight: int | None = None
    tokens_day: int | None = None
    tokens_month: int | None = None
    max_tokens: int | None = None
    max_context: int | None = None


UNSAID = Quota()


def account_of(client: str, key_id: str) -> str:
    """Whose limits and usage it is: of one key in the store, or of a client by whatever key of the environment."""
    return f"key:{key_id}" if key_id else f"client:{client}"


@dataclass(frozen=True, slots=True)
class Principal:
    """A client known by its key. Never holds the key."""

    client: str
    scopes: frozenset[Scope] = INFERENCE
    priority: Priority = Priority.DEFAULT
    # Its share beside other clients of its class: one of weight 2 gets twice as much.
    weight: float = 1.0
    # Of a key in the store; "" for those of the environment.
    key_id: str = ""
    # Patterns of the models it may ask for (``llama-*``); none: all.
    models: tuple[str, ...] = ()
    quota: Quota = UNSAID
    # What holds beside that for the models of a pattern.
    model_quotas: tuple[tuple[str, Quota], ...] = ()

    @property
    def operator(self) -> bool:
        return Scope.ADMIN in self.scopes

    @property
    def account(self) -> str:
        """Whose limits and usage it is: of one key in the store; of a client, by whatever key of the environment."""
        return account_of(self.client, self.key_id)

    def may_ask(self, model: str) -> bool:
        """Whether it may ask for the model of this name."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def may_fall_back_to(self, model: str) -> bool:
        """Whether this model may answer for another: not past limits of its own, which were not asked."""
        return self.may_ask(model) and not any(fnmatchcase(model, pattern) for pattern, _ in self.model_quotas)


ANONYMOUS = Principal(client="anonymous")
