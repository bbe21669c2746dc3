"""The queue is fair: floods, classes, weights, and what clients really took."""

import pytest

from corral.core.errors import QueueFull, QueueTimeout
from corral.core.principal import Principal, Priority
from corral.core.usage import Usage
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from support.pools import demand_of, leasing, pool_of, replica_of, settle
from support.virtual_time import advance, in_virtual_time

FLOOD, GUEST = Principal("flood"), Principal("guest")
BATCH = Principal("batch", priority=Priority.BATCH)
CHAT = Principal("chat", priority=Priority.INTERACTIVE)


async def served(pool: Pool, lease: Lease, count: int, tokens: int = 100) -> tuple[list[str], Lease]:
    """Calls end one after the other; whose started."""
    names = []
    for _ in range(count):
        lease.usage = Usage(tokens, 0, 0)
        with lease:
            pass
        await settle()
        [lease] = pool.replicas[0]._leases.values()
        names.append(lease.demand.principal.client)
    return names, lease


@in_virtual_time
async def test_a_guest_does_not_wait_for_a_flood() -> None:
    pool = pool_of(replica_of(1))
    lease = await pool.lease(demand_of(1, FLOOD))
    flood = [await leasing(pool, demand_of(1, FLOOD)) for _ in range(50)]
    guest = await leasing(pool, demand_of(1, GUEST))
    names, lease = await served(pool, lease, 1)
    assert names == ["guest"]
    assert guest.done()
    for waiter in flood:
        waiter.cancel()
    await settle()
    with lease:
        assert pool.waiting == 0


@in_virtual_time
async def test_a_client_that_takes_much_gets_fewer_turns() -> None:
    pool = pool_of(replica_of(1))
    lease = await pool.lease(demand_of(1, FLOOD))
    waiters = [await leasing(pool, demand_of(1, each)) for each in (FLOOD, GUEST) * 20]
    turns = []
    for _ in range(12):
        tokens = 1000 if lease.demand.principal is FLOOD else 100
        names, lease = await served(pool, lease, 1, tokens)
        turns += names
    assert turns.count("guest") > 2 * turns.count("flood")
    for waiter in waiters:
        waiter.cancel()
    await settle()
    with lease:
        pass


@in_virtual_time
async def test_classes_go_in_their_order_and_nobody_starves() -> None:
    pool = pool_of(replica_of(1), lift_s=30.0)
    lease = await pool.lease(demand_of(1, FLOOD))
    batch = await leasing(pool, demand_of(1, BATCH))
    waiters = [await leasing(pool, demand_of(1, each)) for each in (FLOOD, CHAT) * 3]
    names, lease = await served(pool, lease, 2)
    assert names == ["chat", "chat"]
    assert [pool.waiting_of(priority) for priority in Priority] == [1, 3, 1]
    await advance(30.0)
    names, lease = await served(pool, lease, 3)
    # Both were passed over; the higher class has every second turn.
    assert names == ["flood", "chat", "batch"]
    assert batch.done()
    for waiter in waiters:
        waiter.cancel()
    await settle()
    with lease:
        pass


@in_virtual_time
async def test_one_client_cannot_fill_the_queue() -> None:
    pool = pool_of(replica_of(1), length=5, per_client=3)
    lease = await pool.lease(demand_of(1, FLOOD))
    waiters = [await leasing(pool, demand_of(1, FLOOD)) for _ in range(3)]
    with pytest.raises(QueueFull, match="3 requests of this client are waiting"):
        await pool.lease(demand_of(1, FLOOD))
    waiters += [await leasing(pool, demand_of(1, GUEST)) for _ in range(2)]
    with pytest.raises(QueueFull, match="5 requests are waiting"):
        await pool.lease(demand_of(1, GUEST))
    for waiter in waiters:
        waiter.cancel()
    await settle()
    with lease:
        assert pool.waiting == 0


@in_virtual_time
async def test_batch_is_more_patient() -> None:
    pool = pool_of(replica_of(1), patience_s=10.0, batch_patience_s=100.0)
    lease = await pool.lease(demand_of())
    hasty, patient = await leasing(pool), await leasing(pool, demand_of(1, BATCH))
    await advance(10.0)
    with pytest.raises(QueueTimeout, match="within 10 s"):
        await hasty
    await advance(89.0)
    assert not patient.done()
    await advance(1.0)
    with pytest.raises(QueueTimeout, match="within 100 s"):
        await patient
    with lease:
        pass


@in_virtual_time
async def test_those_who_wait_for_many_slots_count_as_many_in_what_others_are_told() -> None:
    pool = pool_of(replica_of(4))
    with await pool.lease(demand_of(4)):
        await advance(10)
    lease = await pool.lease(demand_of(4))
    waiters = [await leasing(pool, demand_of(3)), await leasing(pool, demand_of(4))]
    # Eight tasks at ten seconds each, in four slots.
    assert pool.retry_after_s() == 20.0
    for waiter in waiters:
        waiter.cancel()
    await settle()
    with lease:
        pass
    assert pool.retry_after_s() <= 10.0
