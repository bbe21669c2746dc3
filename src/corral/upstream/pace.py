"""How long slots are held, and when one is likely to be free."""

import asyncio
from math import ceil

# How long a refused client is asked to wait while nothing has been measured yet.
DEFAULT_RETRY_S = 1.0
# The weight of the newest lease in the mean length of leases.
HELD_SMOOTHING = 0.2


class Pace:
    """One writer: the pool whose leases it measures."""

    def __init__(self) -> None:
        # The tasks of those who wait.
        self.tasks = 0
        # How long a lease is held on average; 0 as long as none has ended.
        self.held_s = 0.0

    def ended(self, held_s: float) -> None:
        """A lease has ended that was held for so long."""
        self.held_s += (held_s - self.held_s) * (HELD_SMOOTHING if self.held_s else 1.0)

    def retry_after_s(self, slots: int, ready_at: float | None) -> float:
        """When one of so many slots is likely to be free for one who comes back: what waits, served at this rate.

        Without slots: when the model that loads is likely to be ready, on the loop's clock.
        """
        if not slots and ready_at is not None:
            return max(DEFAULT_RETRY_S, float(ceil(ready_at - asyncio.get_running_loop().time())))
        if not slots or not self.held_s:
            return DEFAULT_RETRY_S
        return max(DEFAULT_RETRY_S, float(ceil((self.tasks + 1) * self.held_s / slots)))
