"""The states of a replica and of the process behind it, each in one sentence."""

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Where a replica stands."""

    # Not asked yet, or asked and not answered yet.
    UNKNOWN = "unknown"
    # The process was spawned and its HTTP port does not answer yet, or answers 503 while the model loads.
    LOADING = "loading"
    # /health says 200 and /props has been read: it takes calls.
    READY = "ready"
    # Connections are refused, break, or time out; it is asked again and again.
    UNREACHABLE = "unreachable"
    # Our own child has died and waits to be started again.
    BACKOFF = "backoff"
    # Our own child could not be started several times in a row; nobody tries any more.
    FAILED = "failed"
    # Our own child was told to stop, or has stopped.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Transition:
    """A replica went from one state to another. ``why`` is for operators: it may hold log lines."""

    replica: str
    model: str
    old: State
    new: State
    why: str
    at_unix_s: float
