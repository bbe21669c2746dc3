"""A timer that is moved often and rings seldom."""

import asyncio
from collections.abc import Callable
from math import inf

# uvloop rounds delays to milliseconds and may wake a little early.
EARLY_S = 0.001


class Alarm:
    """Calls ``ring`` once it has not been moved for as long as it was set to. Writer: the connection it belongs to.

    A limit on silence moves with every piece of a reply. To move the alarm is
    an addition: the loop's own timer stays where it is, and when it fires too
    early it is armed again for the rest.
    """

    __slots__ = ("_armed_for", "_due", "_loop", "_ring", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._due = inf
        self._armed_for = inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, delay_s: float) -> None:
        """Ring in ``delay_s`` from now, and not before."""
        self._due = due = self._loop.time() + delay_s
        if due < self._armed_for:
            self._arm(due)

    def stop(self) -> None:
        """Never ring again, whatever is set; leaves no timer and holds nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Nothing is due before this.
        self._armed_for = -inf
        self._ring = _nothing

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._fire)
        self._armed_for = at

    def _fire(self) -> None:
        self._timer = None
        self._armed_for = inf
        if self._loop.time() + EARLY_S >= self._due:
            self._ring()
        else:
            self._arm(self._due)


def _nothing() -> None:
    """What a stopped alarm would call."""
