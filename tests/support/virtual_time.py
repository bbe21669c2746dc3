"""An event loop whose clock stands still until a test moves it."""

import asyncio
from collections.abc import Callable, Coroutine, Sized
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")

# More turns than any chain of callbacks here needs.
TURNS = 8


class VirtualLoop(asyncio.SelectorEventLoop):
    """Timers fire when ``advance`` says that their time has come. Nothing in it waits for a socket."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    @property
    def busy(self) -> bool:
        """Somebody can go on now, beside the one who asks."""
        ready: Sized = vars(self)["_ready"]
        return bool(ready)

    async def advance(self, seconds: float) -> None:
        """Let the time pass, and everyone who can go on do so."""
        self._now += seconds
        for _ in range(TURNS):
            await asyncio.sleep(0)


async def advance(seconds: float) -> None:
    """Move the clock of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    await loop.advance(seconds)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let pytest call an ``async def`` test on such a loop; fails when a task outlives it."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(_run_and_count(test(*args, **kwargs)))

    return run


async def _run_and_count(coroutine: Coroutine[Any, Any, None]) -> None:
    await coroutine
    await advance(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
