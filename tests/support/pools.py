"""Pools whose replicas are ready when a test says so, without a server behind them."""

import asyncio
import time
from collections.abc import Collection

from corral.config import QueueSettings
from corral.core.balance import Balance
from corral.core.call import Call, Endpoint
from corral.core.demand import Demand
from corral.core.fairness import Account, FairQueue
from corral.core.lifecycle import State
from corral.core.principal import ANONYMOUS, Principal
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from corral.upstream.probe import Facts, Prober
from corral.upstream.replica import Clocks, Replica
from corral.upstream.wire import Client


def replica_of(slots: int, name: str = "r", *, context: int | None = None, weight: float = 1.0) -> Replica:
    """A replica that is ready and that nobody asks how it is; slots that are given up are free at once."""
    replica = Replica(name, "m", Prober(Client()), Clocks(time.monotonic, time.time), weight=weight)
    replica.facts = Facts(slots=slots, context=context, shows_slots=False)
    replica.become(State.READY, "the test says so")
    return replica


def pool_of(*replicas: Replica, balance: Balance = Balance.PREFIX, **settings: float) -> Pool:
    """A pool with patience, if ``settings`` of the queue do not say otherwise."""
    queue = QueueSettings(**{"patience_s": 60.0, "unready_patience_s": 60.0, **settings})  # type: ignore[arg-type]  # checked by Pydantic
    return Pool("m", replicas, queue, balance)


def demand_of(tasks: int = 1, principal: Principal = ANONYMOUS, *, text: str = "hi", **fields: object) -> Demand:
    """A chat with so many choices."""
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return Demand(Call(Endpoint.CHAT, "m", body, n=tasks), principal, len(text) + 40)


def taken(replica: Replica, tasks: int) -> Lease:
    """So many slots of a replica, which no pool has given."""
    account: Account[object] = FairQueue[object]().account(ANONYMOUS)
    lease = Lease(replica, demand_of(tasks), account, replica.put_back)
    replica.take(lease)
    return lease


async def leasing(pool: Pool, demand: Demand | int = 1, *, avoid: Collection[Replica] = ()) -> "asyncio.Task[Lease]":
    """A call that has joined the queue."""
    demand = demand_of(demand) if isinstance(demand, int) else demand
    task = asyncio.create_task(pool.lease(demand, avoid=avoid))
    await settle()
    return task


async def settle() -> None:
    """Let everyone who can go on do so: a grant, its waiter, and what follows from it."""
    for _ in range(4):
        await asyncio.sleep(0)
