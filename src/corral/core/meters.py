"""What each limit counts with: pure values, told the time.

All have the same five questions. ``wait_s``: None when so much may be taken
now, else for how long not, and taking nothing. ``take`` gives a mark, with
which ``settle`` later says what was used of it, once. ``left`` and
``reset_s``: how the limit stands.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from itertools import islice
from math import floor
from typing import NamedTuple, Protocol

from corral.core.calendar import Period
from corral.core.limits import HINT_S, NEVER_S

# What has been settled is kept in so many portions of a window, each of which leaves as a whole, when the last of it
# may. A power of two, so that dividing by it rounds nothing.
GRAINS = 1024
# How many of them are looked at to say when there will be room; then a client asks again.
WALK = 128


class Moment(NamedTuple):
    """Now: on a clock that only windows know, and in Unix time for calendars."""

    now: float
    unix_s: float


class Meter(Protocol):
    """See the module's text."""

    def wait_s(self, amount: int, limit: int, at: Moment) -> float | None: ...

    def take(self, amount: int, at: Moment) -> float: ...

    def settle(self, mark: float, amount: int, used: int, at: Moment) -> None: ...

    def left(self, limit: int) -> int: ...

    def reset_s(self, at: Moment) -> float: ...


class RequestWindow:
    """At most ``limit`` requests in any half-open span of ``window_s`` seconds. One writer: itself.

    Exact where a counter per fixed window lets twice the limit through at its
    boundary; the price is one number for each admitted request, so memory is
    bounded by the limit. Should the clock step back, time stands still here
    until it has caught up.
    """

    __slots__ = ("_latest", "_leaving", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        # When each admitted request leaves the window, in order.
        self._leaving: deque[float] = deque()
        self._latest = float("-inf")

    def wait_s(self, amount: int, limit: int, at: Moment) -> float | None:  # noqa: ARG002  (one request is one)
        now = self._forget_until(at.now)
        held = len(self._leaving)
        if held < limit:
            return None
        return self._leaving[held - limit] - now if limit else HINT_S

    def take(self, amount: int, at: Moment) -> float:  # noqa: ARG002
        self._latest = now = max(at.now, self._latest)
        mark = now + self.window_s
        # After a reload a shorter window begins; what is in order stays in order.
        if self._leaving and self._leaving[-1] > mark:
            mark = self._leaving[-1]
        self._leaving.append(mark)
        return mark

    def settle(self, mark: float, amount: int, used: int, at: Moment) -> None:  # noqa: ARG002
        """A request that did not run is given back, unless it has left the window already."""
        if used:
            return
        place = bisect_left(self._leaving, mark)
        if place < len(self._leaving) and self._leaving[place] == mark:
            del self._leaving[place]

    def left(self, limit: int) -> int:
        return max(0, limit - len(self._leaving))

    def reset_s(self, at: Moment) -> float:
        return max(0.0, self._leaving[-1] - max(at.now, self._latest)) if self._leaving else 0.0

    def _forget_until(self, now: float) -> float:
        self._latest = now = max(now, self._latest)
        while self._leaving and self._leaving[0] <= now:
            self._leaving.popleft()
        return now


class TokenWindow:
    """At most ``limit`` tokens in any span of ``window_s`` seconds, by when replies ended. One writer: itself.

    What is reserved counts as long as its exchange is open, and what was used
    for ``window_s`` from its settlement: as long as no exchange uses more than
    it has reserved, no span holds more than the limit. Settled amounts leave in
    portions (``GRAINS``), each at the end of its last moment: a thousandth of a
    window late, never early.
    """

    __slots__ = ("_grains", "_latest", "_open", "_settled", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._open = 0
        self._settled = 0
        # When each portion leaves, and how much it is, in order.
        self._grains: deque[tuple[float, int]] = deque()
        self._latest = float("-inf")

    def wait_s(self, amount: int, limit: int, at: Moment) -> float | None:
        if amount > limit:
            return NEVER_S
        now = self._forget_until(at.now)
        missing = self._open + self._settled + amount - limit
        if missing <= 0:
            return None
        leaving = now
        for leaving, portion in islice(self._grains, WALK):
            missing -= portion
            if missing <= 0:
                return leaving - now
        # Those that are open may end at any moment.
        return leaving - now if len(self._grains) > WALK else HINT_S

    def take(self, amount: int, at: Moment) -> float:  # noqa: ARG002
        self._open += amount
        return 0.0

    def settle(self, mark: float, amount: int, used: int, at: Moment) -> None:  # noqa: ARG002
        now = self._forget_until(at.now)
        self._open -= amount
        if not used:
            return
        self._settled += used
        grain_s = self.window_s / GRAINS
        leaving = (floor(now / grain_s) + 1) * grain_s + self.window_s
        if self._grains and self._grains[-1][0] >= leaving:
            leaving, portion = self._grains.pop()
            used += portion
        self._grains.append((leaving, used))

    def left(self, limit: int) -> int:
        return max(0, limit - self._open - self._settled)

    def reset_s(self, at: Moment) -> float:
        """What is open now may end now, and then counts for a whole window."""
        if self._open:
            return self.window_s
        return max(0.0, self._grains[-1][0] - max(at.now, self._latest)) if self._grains else 0.0

    def _forget_until(self, now: float) -> float:
        self._latest = now = max(now, self._latest)
        while self._grains and self._grains[0][0] <= now:
            self._settled -= self._grains.popleft()[1]
        return now


class InFlight:
    """How many requests are under way. One writer: itself."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def wait_s(self, amount: int, limit: int, at: Moment) -> float | None:  # noqa: ARG002
        return None if self._count < limit else HINT_S

    def take(self, amount: int, at: Moment) -> float:  # noqa: ARG002
        self._count += 1
        return 0.0

    def settle(self, mark: float, amount: int, used: int, at: Moment) -> None:  # noqa: ARG002
        self._count -= 1

    def left(self, limit: int) -> int:
        return max(0, limit - self._count)

    def reset_s(self, at: Moment) -> float:  # noqa: ARG002
        return HINT_S if self._count else 0.0


class Budget:
    """At most ``limit`` tokens in a day or month of UTC, by when requests began. One writer: itself.

    A clock that steps back into a period that is over gives nothing of it back.
    """

    __slots__ = ("_open", "_period", "_period_of", "_used")

    def __init__(self, period_of: Callable[[float], Period]) -> None:
        self._period_of = period_of
        self._period = Period(-1, 0.0)
        self._used = 0
        self._open = 0

    def wait_s(self, amount: int, limit: int, at: Moment) -> float | None:
        self._turn_to(at.unix_s)
        if amount > limit:
            return NEVER_S
        return None if self._used + self._open + amount <= limit else self.reset_s(at)

    def take(self, amount: int, at: Moment) -> float:
        self._turn_to(at.unix_s)
        self._open += amount
        return self._period.number

    def settle(self, mark: float, amount: int, used: int, at: Moment) -> None:  # noqa: ARG002
        """What was taken in a period that is over is of no interest any more."""
        if mark == self._period.number:
            self._open -= amount
            self._used += used

    def restore(self, tokens: int, unix_s: float) -> None:
        """So much at least was used in the period of this time; it only ever raises what is counted."""
        if self._period_of(unix_s).number >= self._period.number:
            self._turn_to(unix_s)
            self._used = max(self._used, tokens)

    def left(self, limit: int) -> int:
        return max(0, limit - self._used - self._open)

    def reset_s(self, at: Moment) -> float:
        return max(0.0, self._period.ends_unix_s - at.unix_s)

    def _turn_to(self, unix_s: float) -> None:
        if unix_s >= self._period.ends_unix_s:
            self._period = self._period_of(unix_s)
            self._used = self._open = 0
