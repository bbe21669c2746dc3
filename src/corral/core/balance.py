"""Which replica takes a call."""

from collections.abc import Sequence
from enum import Enum
from hashlib import blake2b
from math import log
from typing import NamedTuple

# The longest wait for a replica that has the prompt in its cache, while another one is free.
HOLD_LIMIT_S = 5.0

_HASHES = 2.0**64


class Balance(Enum):
    """The ways to choose; the value is how the setting spells it."""

    # Where least is left to be read of the prompt, the replica's load considered.
    PREFIX = "prefix"
    LEAST_BUSY = "least_busy"
    ROUND_ROBIN = "round_robin"
    # The same one for a conversation (`prompt_cache_key`), else for a client.
    STICKY = "sticky"


class Candidate(NamedTuple):
    """A replica with room for the call, as a decision sees it. (A frozen dataclass takes longer to make.)"""

    name: str
    # Its slots that are in use now, and the share that would be with this call.
    busy: int
    load: float
    # How far it is in taking its turns; the one behind is next.
    turn: float
    weight: float = 1.0
    # Of the prompt, what is not in its cache.
    uncached: float = 0.0
    # Random: decides where nothing else does, so that no replica is preferred for its place in a list.
    lot: float = 0.0


def choose(balance: Balance, candidates: Sequence[Candidate], key: str = "") -> int:
    """The number of the one to take; ``key`` is what STICKY goes by."""
    match balance:
        case Balance.PREFIX:
            rank = [(_cost(each), *_least_busy(each)) for each in candidates]
        case Balance.LEAST_BUSY:
            rank = [(0.0, *_least_busy(each)) for each in candidates]
        case Balance.ROUND_ROBIN:
            rank = [(0.0, 0.0, each.turn, each.lot) for each in candidates]
        case Balance.STICKY:
            rank = [(_distance(key, each), 0.0, 0.0, 0.0) for each in candidates]
    return min(range(len(candidates)), key=rank.__getitem__)


def hold_s(saved: float, read_per_s: float, held_s: float, slots: int) -> float:
    """How long to wait for a busy replica that would save reading ``saved`` of the prompt; 0 when it is not worth it.

    One of its slots becomes free every ``held_s / slots`` seconds, as calls take
    ``held_s`` on average; ``read_per_s`` is how fast prompts are read, 0 if unknown.
    """
    saved_s = saved / read_per_s if read_per_s else 0.0
    expected_s = held_s / slots if held_s and slots else HOLD_LIMIT_S
    return min(saved_s, HOLD_LIMIT_S) if expected_s < saved_s else 0.0


def _cost(candidate: Candidate) -> float:
    """LMetric: what is to be read, and what reading it costs those who are there already (arXiv 2603.15202)."""
    return candidate.uncached * (candidate.busy + 1) / candidate.weight


def _least_busy(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.load / candidate.weight, candidate.turn, candidate.lot


def _distance(key: str, candidate: Candidate) -> float:
    """Weighted rendezvous hashing: all who ask agree, and when a replica goes only its own keys move."""
    digest = blake2b(f"{key}\0{candidate.name}".encode("utf-8", "replace"), digest_size=8).digest()
    share = (int.from_bytes(digest) + 1) / (_HASHES + 1)
    return -log(share) / candidate.weight
