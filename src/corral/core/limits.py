"""The limit on requests: an exact sliding window."""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """What the window said to one request, and how it stands after that.

    ``reset_s``: until nothing of the limit is used any more. ``retry_after_s``:
    until the next request is admitted; None when this one was. ``stamp`` names
    what was taken, for ``give_back``; None when nothing was.
    """

    admitted: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float | None = None
    stamp: float | None = None


class SlidingWindow:
    """At most ``limit`` requests in any half-open span of ``window_s`` seconds. One writer: itself.

    Exact where a counter per fixed window lets twice the limit through at its
    boundary; the price is one number for each admitted request, so memory is
    bounded by ``limit``. Time comes in as ``now``, seconds of any one clock.
    Should that clock step back, time stands still here until it has caught up.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        if limit < 1 or window_s <= 0:
            raise ValueError(f"a window needs a limit and a length above 0, not {limit} and {window_s}")
        self._limit = limit
        self._window_s = window_s
        # When each admitted request leaves the window, in order. One sum decides
        # on leaving and on retry_after_s, so that the two cannot differ by a rounding.
        self._leaving: deque[float] = deque()
        self._latest = float("-inf")

    def try_take(self, now: float) -> Decision:
        """Admit one request if the window holds fewer than the limit; a refused one consumes nothing."""
        now = self._forget_until(now)
        if len(self._leaving) >= self._limit:
            return Decision(False, self._limit, 0, self._leaving[-1] - now, retry_after_s=self._leaving[0] - now)
        stamp = now + self._window_s
        self._leaving.append(stamp)
        return Decision(True, self._limit, self._limit - len(self._leaving), self._window_s, stamp=stamp)

    def give_back(self, stamp: float) -> None:
        """Undo an admission, once; nothing happens when it has left the window already."""
        place = bisect_left(self._leaving, stamp)
        if place < len(self._leaving) and self._leaving[place] == stamp:
            del self._leaving[place]

    def _forget_until(self, now: float) -> float:
        self._latest = now = max(now, self._latest)
        while self._leaving and self._leaving[0] <= now:
            self._leaving.popleft()
        return now
