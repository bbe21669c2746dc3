"""Who is asking."""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Whose calls go first where calls have to wait: the lower number. The operator says so, never the client."""

    INTERACTIVE = 0
    DEFAULT = 1
    BATCH = 2

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Principal:
    """A client known by its key. Never holds the key."""

    client: str
    # May see addresses in /health, and /metrics from anywhere, and say what becomes of models.
    operator: bool = False
    priority: Priority = Priority.DEFAULT
    # Its share beside other clients of its class: one of weight 2 gets twice as much.
    weight: float = 1.0


ANONYMOUS = Principal(client="anonymous")
