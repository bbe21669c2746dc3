"""How the event loop does: how many tasks it has, and how late it is."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from corral.observe.readings import Instrument, Reading

# Often enough to meet what blocks the loop again and again, seldom enough to cost nothing.
INTERVAL_S = 0.5


def tasks() -> Iterator[Reading]:
    """How many tasks the running loop has, whoever reads this included; nothing where no loop runs."""
    try:
        count = len(asyncio.all_tasks())
    except RuntimeError:
        return
    yield Reading(Instrument.TASKS, count)


@contextmanager
def watched_lag(tell: Callable[[float], None], clock: Callable[[], float]) -> Iterator[None]:
    """Tell every INTERVAL_S, within the block, by how many seconds the running loop was late for it."""
    lag = Lag(tell, clock)
    try:
        yield
    finally:
        lag.stop()


class Lag:
    """Measures how late what is due is called. One writer: its own timer.

    Something that keeps the loop busy for 100 ms makes everybody's token 100 ms
    late, and the timer too if it is due then.
    """

    def __init__(self, tell: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._wait()

    def stop(self) -> None:
        """Measure no more."""
        self._timer.cancel()

    def _wait(self) -> None:
        self._due = self._clock() + INTERVAL_S
        self._timer = self._loop.call_later(INTERVAL_S, self._ring)

    def _ring(self) -> None:
        # uvloop counts from the beginning of the loop's turn, so that it may ring a little early.
        self._tell(max(0.0, self._clock() - self._due))
        self._wait()
