"""Corrals that share llama-servers, as far as slots go: pools and the tasks that keep the book, nothing else."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from corral.config import ValkeySettings
from corral.core.holding import Stage
from corral.upstream.replica import Replica
from corral.upstream.shared.book import Book
from corral.upstream.shared.sharing import Sharing
from support.pools import pool_of, replica_of
from support.virtual_time import VirtualLoop

# More than any chain of questions and answers takes.
TURNS = 2000


def sharing_of(
    book: Book, lease_s: float = 15.0, *, away: Literal["refuse", "share"] = "refuse", corrals: int = 1
) -> Sharing:
    return Sharing(ValkeySettings(lease_s=lease_s, away=away, corrals=corrals), book)


class Sharer:
    """One Corral: a pool of shared replicas. Written by its test."""

    def __init__(self, sharing: Sharing, slots: Sequence[int], **settings: float) -> None:
        self.sharing = sharing
        self.replicas: list[Replica] = [replica_of(count, f"r{number}") for number, count in enumerate(slots)]
        for replica in self.replicas:
            replica.shared = sharing.holding()
        self.pool = pool_of(*self.replicas, **settings)  # type: ignore[arg-type]  # none of them is its balance
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, loop: asyncio.AbstractEventLoop) -> "Sharer":
        """Keep the book from now on."""
        self._tasks = [loop.create_task(self.sharing.keep(replica)) for replica in self.replicas]
        self._tasks.append(loop.create_task(self.sharing.run()))
        return self

    def end(self) -> None:
        """Stop, as it does when it is told to."""
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait until it has stopped."""
        await asyncio.wait(self._tasks)

    def die(self) -> None:
        """Stop, as it does after a kill -9: without a word."""
        for replica in self.replicas:
            if replica.shared is not None:
                replica.shared.stage = Stage.AWAY
        self.end()


async def settled(loop: VirtualLoop) -> None:
    """Let everybody who can go on do so, until nobody can: one answer of the book lets others ask."""
    for _ in range(TURNS):
        if not loop.busy:
            return
        await asyncio.sleep(0)
    raise AssertionError("they go on asking for ever")
