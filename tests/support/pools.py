"""Pools whose replicas are ready when a test says so, without a server behind them."""

import asyncio
import time

from corral.config import QueueSettings
from corral.core.lifecycle import State
from corral.upstream.pool import Pool
from corral.upstream.probe import Facts, Prober
from corral.upstream.replica import Clocks, Lease, Replica
from corral.upstream.wire import Client


def replica_of(slots: int, name: str = "r") -> Replica:
    """A replica that is ready and that nobody asks how it is; slots that are given up are free at once."""
    replica = Replica(name, "m", Prober(Client()), Clocks(time.monotonic, time.time))
    replica.facts = Facts(slots=slots, shows_slots=False)
    replica.become(State.READY, "the test says so")
    return replica


def pool_of(*replicas: Replica, length: int = 100, patience_s: float = 60.0, unready_patience_s: float = 60.0) -> Pool:
    settings = QueueSettings(length=length, patience_s=patience_s, unready_patience_s=unready_patience_s)
    return Pool("m", replicas, settings)


async def leasing(pool: Pool, tasks: int = 1, *, avoid: Replica | None = None) -> "asyncio.Task[Lease]":
    """A call that has joined the queue."""
    task = asyncio.create_task(pool.lease(tasks, avoid=avoid))
    await settle()
    return task


async def settle() -> None:
    """Let everyone who can go on do so: a grant, its waiter, and what follows from it."""
    for _ in range(4):
        await asyncio.sleep(0)
