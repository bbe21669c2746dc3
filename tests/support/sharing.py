"""Corrals that count their limits together, without the rest of them."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any
from uuid import uuid4

from corral.core.limits import COUNTED, Limit, Rules, Scope
from corral.core.tally import Verdict
from corral.valkey.link import Link
from corral.valkey.shared_limits import SharedLimits

US = 1_000_000
# 2026-11-25 at 23:59 UTC.
LATE = 1_795_651_140.0
INSTANT_S = 1 / 64
NOBODY = "nobody"


def rules_of(*scopes: dict[Limit, int], shadow: frozenset[Limit] = frozenset(), account: str = NOBODY) -> Rules:
    models = ("", "llama")
    made = tuple(
        Scope(models[at], tuple((limit, scope[limit]) for limit in COUNTED if limit in scope))
        for at, scope in enumerate(scopes)
    )
    return Rules("nobody", f"client:{account}-{uuid4().hex}", made, window_s=16.0, shadow=shadow)


class Clock:
    """The server's, moved by hand."""

    def __init__(self) -> None:
        self.now = LATE

    def us(self) -> int:
        return round(self.now * US)


@asynccontextmanager
async def sharing(
    url: str, clock: Clock | None = None, lease_s: float = 15.0, name: str = "a"
) -> AsyncIterator[SharedLimits]:
    """A Corral's way to the limits; it lives as long as the block."""
    ids = count()
    unique = uuid4().hex
    async with linked(url, 1.0, "test") as link:
        limits = SharedLimits(
            link, lease_s, "test", lambda: f"{name}-{unique}-{next(ids)}", None if clock is None else clock.us
        )
        async with beside(limits.run()):
            yield limits


@asynccontextmanager
async def linked(url: str, timeout_s: float, prefix: str) -> AsyncIterator[Link]:
    """A Corral's way to Valkey; what is told it within the block comes through."""
    link = Link(url, timeout_s, prefix)
    async with beside(link.run()):
        yield link
        await link.drain()


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def must_take(limits: SharedLimits, rules: Rules, tokens: int = 0) -> tuple[Verdict, Any]:
    taken = await limits.take(rules, tokens)
    assert taken is not None
    return taken
