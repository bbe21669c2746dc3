"""Keeps a stream alive that has nothing to say yet, and tells who asks for it what is waited for."""

import asyncio
from collections.abc import Callable

from corral.core import sse
from corral.pipeline.answer import Answer
from corral.pipeline.relay import SSE_HEADERS

# What is waited for is told as often as this, if it has changed.
TOLD_EVERY_S = 1.0
WAITING = "waiting"


class Comments:
    """Within its block, a comment whenever the stream was silent for an interval: nothing in between shall cut it.

    One writer: its own timer. ``told`` says what is waited for, "" for nothing: each time that it says
    something else is worth a comment.
    """

    def __init__(self, answer: Answer, interval_s: float, told: Callable[[], str] | None = None) -> None:
        self._answer = answer
        self._interval_s = interval_s
        self._told = told
        self._every_s = interval_s if told is None else min(interval_s, TOLD_EVERY_S)
        self._sent = 0
        self._silent_s = 0.0
        self._last = ""

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._tick)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self._silent_s = self._silent_s + self._every_s if self._answer.bytes_sent == self._sent else 0.0
        told = self._told() if self._told is not None else ""
        if told and told != self._last:
            self._last = told
            self._say(told)
        elif self._silent_s >= self._interval_s:
            self._say(WAITING)
        self._sent = self._answer.bytes_sent
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._tick)

    def _say(self, text: str) -> None:
        self._silent_s = 0.0
        if not self._answer.started:
            self._answer.start(200, SSE_HEADERS)
        self._answer.write(sse.comment(text))
