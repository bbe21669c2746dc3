"""Runs a coroutine as a test and sees that it leaves no task behind."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")


def async_test(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let pytest call an ``async def`` test; fails when a task outlives it."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(_run_and_count(test(*args, **kwargs)))

    return run


async def _run_and_count(coroutine: Coroutine[Any, Any, None]) -> None:
    await coroutine
    # One turn lets tasks that are already done or cancelled end.
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
