"""Percentiles of times out of few numbers, which can be added up: of hours to days, of clients to all.

DDSketch (Masson, Rim, Lee: DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees,
VLDB 2019): values are counted in buckets whose bounds grow by the same factor each.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

# A percentile is off by this share of itself at most.
ACCURACY = 0.02
# Nobody can tell shorter times apart; what is shorter counts as this.
LEAST_S = 1e-4
# A year; what is longer counts as this.
MOST_S = 3.2e7

_FACTOR = (1 + ACCURACY) / (1 - ACCURACY)
_SCALE = 1 / math.log(_FACTOR)
_LEAST, _MOST = (math.ceil(math.log(seconds) * _SCALE) for seconds in (LEAST_S, MOST_S))
# A bucket's number, and how many values are in it.
_CELL = struct.Struct("<hI")


@dataclass(slots=True)
class Sketch:
    """How many times fell into each bucket. One writer: who made it."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a time; negative ``times`` take back what was counted."""
        bucket = bucket_of(seconds)
        self.counts[bucket] = self.counts.get(bucket, 0) + times

    def merge(self, other: Self) -> None:
        """Count all that the other has."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """The time that this share of all does not exceed; None when there is none."""
        wanted = share * (self.count - 1)
        seen = 0
        for bucket, count in sorted(self.counts.items()):
            seen += count
            if count > 0 and seen > wanted:
                return _middle(bucket)
        return None

    def packed(self) -> bytes:
        """As bytes, for the store; empty when there is nothing in it."""
        return b"".join(_CELL.pack(bucket, count) for bucket, count in sorted(self.counts.items()) if count > 0)

    @classmethod
    def unpacked(cls, packed: bytes) -> Self:
        """What ``packed`` has made."""
        return cls(dict(_cells(packed)))


def bucket_of(seconds: float) -> int:
    """The number of the bucket that a time falls into."""
    if LEAST_S < seconds < MOST_S:
        return math.ceil(math.log(seconds) * _SCALE)
    return _LEAST if seconds <= LEAST_S else _MOST


def _middle(bucket: int) -> float:
    """The value that is as near to one bound of the bucket as to the other, relatively."""
    return 2 * _FACTOR**bucket / (_FACTOR + 1)


def _cells(packed: bytes) -> Iterator[tuple[int, int]]:
    yield from _CELL.iter_unpack(packed)
