"""Who is asking."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """A client known by its key. Never holds the key."""

    client: str
    # May see addresses in /health, and /metrics from anywhere, and say what becomes of models.
    operator: bool = False


ANONYMOUS = Principal(client="anonymous")
