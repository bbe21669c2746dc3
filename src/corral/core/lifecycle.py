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


class Phase(Enum):
    """Where a model stands whose llama-servers are ours."""

    # It has no process.
    UNLOADED = "unloaded"
    # Its processes were started, and none of them is ready yet.
    LOADING = "loading"
    # One of its processes is ready, or was and is being started again.
    LOADED = "loaded"
    # It takes no more calls; when the last one is over its processes end.
    UNLOADING = "unloading"
    # Its processes could not be started; nobody tries again until someone acts.
    FAILED = "failed"


class Departure(Enum):
    """Why a model was unloaded."""

    # Another needed its memory, or may not be loaded beside it.
    EVICTED = "evicted"
    # The models had grown beyond the budget.
    GROWN = "grown"
    # Nobody used it for as long as it may be idle.
    IDLE = "idle"
    # The operator asked for it, or the settings do not name it any more.
    ASKED = "asked"
    # New processes take its place.
    REPLACED = "replaced"
    # It did not get the memory it wanted while it was loading.
    NO_MEMORY = "no_memory"
    # It could not be started.
    FAILED = "failed"


# What a process says or suffers that asks for more memory than there is: the kernel's killer sends SIGKILL, and
# llama.cpp (ggml-backend.cpp, ggml-cuda.cu, llama-kv-cache.cpp) and C++ say the others.
OUT_OF_MEMORY = (
    "killed by SIGKILL",
    "out of memory",
    "cannot allocate memory",
    "failed to allocate",
    "unable to allocate",
    "std::bad_alloc",
    "cudamalloc failed",
)


def died_for_memory(why: str) -> bool:
    """Whether a process ended because it did not get the memory it wanted, by the reason that is told of its end."""
    told = why.lower()
    return any(sign.lower() in told for sign in OUT_OF_MEMORY)
