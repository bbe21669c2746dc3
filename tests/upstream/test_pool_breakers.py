"""A replica whose calls fail is left alone, as long as there is another."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from corral.core.breaker import FAILURES, PAUSE_S
from corral.core.lifecycle import State
from corral.upstream.alarm import EARLY_S
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from corral.upstream.replica import Replica
from support.pools import demand_of, leasing, pool_of, replica_of
from support.virtual_time import advance, in_virtual_time


def end(lease: Lease, *, failed: bool = False) -> None:
    """The call has been answered."""
    with lease:
        lease.failed = failed


def pair() -> tuple[Replica, Replica]:
    return replica_of(1, "first"), replica_of(1, "second")


@contextmanager
def told(logger: str) -> Iterator[list[tuple[str, str, object]]]:
    """The events of a logger within the block: level, text and fields."""
    events: list[tuple[str, str, object]] = []
    handler = logging.Handler()
    handler.emit = lambda record: events.append(  # type: ignore[method-assign]  # a class would say no more
        (record.levelname, record.getMessage(), getattr(record, "fields", None))
    )
    log = logging.getLogger(logger)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield events
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


async def failing(pool: Pool, replica: Replica) -> None:
    """Its calls fail, one after the other."""
    while replica.breaker.closed:
        lease = await pool.lease(demand_of(), avoid=[each for each in pool.replicas if each is not replica])
        assert lease.replica is replica
        end(lease, failed=True)


@in_virtual_time
async def test_a_replica_whose_calls_fail_is_left_alone_and_tried_by_one_call_after_a_while() -> None:
    bad, good = replica_of(4, "bad"), replica_of(1, "good")
    pool = pool_of(bad, good)
    await failing(pool, bad)
    lease = await pool.lease(demand_of())
    assert lease.replica is good
    # Better to wait for the one that works.
    waiters = [await leasing(pool) for _ in range(2)]
    assert pool.waiting == 2
    await advance(PAUSE_S + EARLY_S)
    trial = await waiters[0]
    assert (trial.replica, trial.trial, waiters[1].done()) == (bad, True, False)
    # Whoever waits tries again when the next pause is over, with nothing else to tell them.
    end(trial, failed=True)
    await advance(2 * PAUSE_S + EARLY_S)
    end(await waiters[1])
    waiters = [await leasing(pool) for _ in range(2)]
    assert (await waiters[0]).replica is bad
    with await waiters[1] as healed:
        assert healed.replica is bad
    end(lease)


@in_virtual_time
async def test_the_log_tells_who_is_left_alone_and_who_is_trusted_again() -> None:
    bad, good = pair()
    pool = pool_of(bad, good)
    with told("corral.replica") as events:
        await failing(pool, bad)
        await advance(PAUSE_S)
        end(await pool.lease(demand_of(), avoid=[good]))
    fields = {"model": "m", "replica": "first"}
    assert events == [("WARNING", "replica left alone", fields), ("INFO", "replica trusted again", fields)]


@in_virtual_time
async def test_when_the_client_of_a_trial_leaves_the_next_call_tries() -> None:
    bad, good = pair()
    pool = pool_of(bad, good)
    await failing(pool, bad)
    with await pool.lease(demand_of()) as busy:
        assert busy.replica is good
        await advance(PAUSE_S)
        for _ in range(2):
            with await pool.lease(demand_of()) as trial:
                assert (trial.replica, trial.trial) == (bad, True)


@in_virtual_time
async def test_a_replica_that_fails_is_better_than_none() -> None:
    bad, good = replica_of(1, "bad"), replica_of(1, "good")
    pool = pool_of(bad, good)
    await failing(pool, bad)
    good.become(State.UNREACHABLE, "x")
    with await pool.lease(demand_of()) as lease:
        assert lease.replica is bad


@in_virtual_time
async def test_clients_that_leave_do_not_count_against_a_replica() -> None:
    bad, good = pair()
    pool = pool_of(bad, good)
    for _ in range(2 * FAILURES):
        with await pool.lease(demand_of(), avoid=[good]) as lease:
            assert lease.replica is bad
    assert bad.breaker.closed
