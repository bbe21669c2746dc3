"""Runs a coroutine as a test on both event loops and sees that it leaves no task and no file descriptor behind."""

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
import uvloop

# No test needs this long; it turns a wait that never ends into a failure that says where.
LIMIT_S = 30

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let pytest call an ``async def`` test, once on asyncio's own loop and once on uvloop."""

    @wraps(test)
    def run(*, new_loop: NewLoop, **arguments: object) -> None:
        # The first uvloop of a process opens a pipe for all of them.
        new_loop().close()
        files = open_files()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_run_and_count(test(**arguments)))
        assert open_files() == files, "file descriptors left open"

    own = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(test)
    # What pytest reads to know which arguments to give.
    vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), own])
    both: Callable[..., None] = pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])(run)
    return both


def open_files() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/dev/fd"))


async def _run_and_count(coroutine: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(LIMIT_S):
        await coroutine
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
