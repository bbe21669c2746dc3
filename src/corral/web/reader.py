"""Clients that take nothing of what they are sent."""

import asyncio
from collections.abc import Callable

# How often within its limit a client is looked at: one that stalls is found out so much later at most.
LOOKS = 4


class Reader:
    """Whether a client takes what it is sent, however slowly. One writer: its connection, which asks now and then."""

    __slots__ = ("_clock", "_limit_s", "_taken_at", "_transport", "_unsent_bytes", "pause_s")

    def __init__(self, transport: asyncio.Transport, clock: Callable[[], float], limit_s: float) -> None:
        # Between two looks.
        self.pause_s = limit_s / LOOKS
        self._transport = transport
        self._clock = clock
        self._limit_s = limit_s
        self._taken_at = 0.0
        self._unsent_bytes = 0

    def begin(self) -> None:
        """The client owes it to us, from now on, to take something."""
        self._taken_at = self._clock()
        self._unsent_bytes = self._transport.get_write_buffer_size()

    def stalled(self) -> bool:
        """It has taken nothing for as long as it may."""
        now, unsent_bytes = self._clock(), self._transport.get_write_buffer_size()
        if unsent_bytes < self._unsent_bytes:
            self._taken_at = now
        self._unsent_bytes = unsent_bytes
        return now - self._taken_at >= self._limit_s
