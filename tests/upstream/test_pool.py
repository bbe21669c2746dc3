"""The queue in front of the slots of a model."""

import asyncio

import pytest

from corral.config import QueueSettings
from corral.core.balance import Balance
from corral.core.demand import Demand
from corral.core.errors import (
    ConnectionLost,
    ContextLengthExceeded,
    InvalidRequest,
    NotReady,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from corral.core.lifecycle import State
from corral.core.principal import Principal, Priority
from support.pools import demand_of, leasing, pool_of, replica_of, settle
from support.virtual_time import advance, in_virtual_time

LONG_S = 60.0
SHORT_S = 30.0
FAULT = ConnectionLost("x")


# Slots.


@in_virtual_time
async def test_a_free_slot_is_leased_at_once_and_given_back_at_the_end() -> None:
    replica = replica_of(2)
    pool = pool_of(replica, length=0)
    with await pool.lease(demand_of(2)) as lease:
        assert (lease.replica, lease.tasks, replica.busy, replica.free) == (replica, 2, 2, 0)
    assert (replica.busy, replica.free, pool.waiting) == (0, 2, 0)


@in_virtual_time
async def test_a_call_that_fails_gives_its_slots_back_too() -> None:
    replica = replica_of(1)
    with pytest.raises(ConnectionLost), await pool_of(replica).lease(demand_of(1)):
        raise FAULT
    assert replica.busy == 0


@in_virtual_time
async def test_the_replica_with_most_free_slots_is_taken_and_among_equals_the_one_that_served_least() -> None:
    small, large = replica_of(1, "small"), replica_of(2, "large")
    pool = pool_of(small, large)
    names = [(await pool.lease(demand_of(1))).replica.name for _ in range(3)]
    assert names == ["large", "small", "large"]


@in_virtual_time
async def test_a_replica_that_is_not_ready_is_not_taken() -> None:
    first, second = replica_of(2, "first"), replica_of(1, "second")
    pool = pool_of(first, second)
    first.become(State.UNREACHABLE, "x")
    assert (await pool.lease(demand_of(1))).replica is second


@in_virtual_time
async def test_a_replica_with_more_weight_gets_more() -> None:
    light, heavy = replica_of(4, "light"), replica_of(4, "heavy")
    heavy.weight = 3.0
    pool = pool_of(light, heavy)
    names = [(await pool.lease(demand_of(1))).replica.name for _ in range(4)]
    assert names.count("heavy") == 3


@in_virtual_time
async def test_a_draining_replica_finishes_its_calls_and_takes_no_more() -> None:
    first, second = replica_of(2, "first"), replica_of(1, "second")
    pool = pool_of(first, second)
    lease = await pool.lease(demand_of(1))
    assert lease.replica is first
    first.drain()
    assert (await pool.lease(demand_of(1))).replica is second
    waiter = await leasing(pool)
    assert (first.busy, first.ready, waiter.done()) == (1, False, False)
    first.drain(draining=False)
    assert (await waiter).replica is first


@in_virtual_time
async def test_other_replicas_take_over_and_what_the_old_ones_leased_is_given_back() -> None:
    old, new = replica_of(1, "old"), replica_of(1, "new")
    pool = pool_of(old)
    with await pool.lease(demand_of(1)):
        waiter = await leasing(pool)
        pool.change([new])
        await settle()
        assert (await waiter).replica is new
    assert old.busy == 0


@in_virtual_time
async def test_whoever_loads_models_is_told_of_a_call_that_waits_for_one() -> None:
    replica, told = replica_of(1), []
    pool = pool_of(replica)
    pool.on_wanted = lambda: told.append(pool.waiting)
    with await pool.lease(demand_of(1)):
        (await leasing(pool)).cancel()
    assert told == []
    replica.become(State.STOPPED, "x")
    waiter = await leasing(pool)
    assert told == [1]
    pool.refuse(NotReady("it does not fit"))
    with pytest.raises(NotReady, match="it does not fit"):
        await waiter
    assert pool.waiting == 0


@in_virtual_time
async def test_nobody_waits_for_an_absent_model() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    pool.absent = "model 'm' is not loaded"
    (await pool.lease(demand_of(1))).__exit__()
    replica.become(State.STOPPED, "x")
    with pytest.raises(NotReady, match=r"^model 'm' is not loaded$"):
        await pool.lease(demand_of(1))


@in_virtual_time
async def test_while_a_model_loads_it_is_said_when_it_will_be_ready() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    replica.become(State.LOADING, "x")
    pool.ready_at = 17.5
    assert pool.retry_after_s() == 18.0
    await advance(17.0)
    assert pool.retry_after_s() == 1.0


@in_virtual_time
async def test_it_is_told_when_the_last_lease_has_ended() -> None:
    replica, told = replica_of(2), []
    pool = pool_of(replica)
    replica.on_idle = lambda: told.append(replica.busy)
    with await pool.lease(demand_of(1)):
        with await pool.lease(demand_of(1)):
            pass
        assert told == []
    assert told == [0]


@in_virtual_time
async def test_another_replica_is_taken_than_the_one_to_avoid() -> None:
    first, second = replica_of(4, "first"), replica_of(1, "second")
    assert (await pool_of(first, second).lease(demand_of(1), avoid=[first])).replica is second


@in_virtual_time
async def test_the_replica_to_avoid_is_better_than_none() -> None:
    first, second = replica_of(1, "first"), replica_of(1, "second")
    pool = pool_of(first, second)
    await pool.lease(demand_of(1), avoid=[first])
    assert (await pool.lease(demand_of(1), avoid=[first])).replica is first


@in_virtual_time
async def test_the_largest_ready_replica_says_what_one_call_can_take() -> None:
    small, large = replica_of(1), replica_of(4)
    pool = pool_of(small, large)
    assert pool.slots == 4
    large.become(State.LOADING, "x")
    assert pool.slots == 1
    small.become(State.LOADING, "x")
    assert (pool.slots, pool.ready) == (0, False)


@in_virtual_time
async def test_the_largest_slot_says_how_long_a_prompt_can_be_as_soon_as_all_are_known() -> None:
    pool = pool_of(replica_of(1, context=1024), replica_of(1, context=4096))
    assert pool.largest_context() == 4096
    pool.change([*pool.replicas, replica_of(1)])
    assert pool.largest_context() is None
    pool.change([])
    assert pool.largest_context() is None


# The queue.


@in_virtual_time
async def test_first_come_first_served() -> None:
    pool = pool_of(replica_of(1))
    lease = await pool.lease(demand_of(1))
    waiters = [await leasing(pool) for _ in range(3)]
    assert pool.waiting == 3
    for number, waiter in enumerate(waiters):
        assert [each.done() for each in waiters].count(True) == number
        with lease:
            pass
        lease = await waiter
    assert pool.waiting == 0


@in_virtual_time
async def test_a_call_for_many_slots_is_not_overtaken_by_calls_for_few() -> None:
    pool = pool_of(replica_of(2))
    first, second = await pool.lease(demand_of(1)), await pool.lease(demand_of(1))
    large, small = await leasing(pool, 2), await leasing(pool, 1)
    with first:
        pass
    await settle()
    assert not large.done()
    assert not small.done()
    with second:
        pass
    with await large:
        assert not small.done()
    await small


@in_virtual_time
async def test_a_waiter_that_leaves_lets_those_behind_it_go_on() -> None:
    pool = pool_of(replica_of(2))
    await pool.lease(demand_of(1))
    large, small = await leasing(pool, 2), await leasing(pool, 1)
    large.cancel()
    await settle()
    assert large.cancelled()
    assert small.done()
    assert pool.waiting == 0


@in_virtual_time
async def test_a_waiter_that_leaves_as_its_slot_is_granted_passes_it_on() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    lease = await pool.lease(demand_of(1))
    leaving, next_one = await leasing(pool), await leasing(pool)
    with lease:
        pass
    # It has the slot and has not woken up yet.
    leaving.cancel()
    await settle()
    assert leaving.cancelled()
    with await next_one:
        assert replica.busy == 1
    assert replica.busy == 0


@in_virtual_time
async def test_a_slot_that_is_free_in_the_moment_in_which_a_waiter_leaves_is_the_next_ones() -> None:
    pool = pool_of(replica_of(1))
    lease = await pool.lease(demand_of())
    leaving, next_one = await leasing(pool), await leasing(pool)
    # It does not know yet that it has left.
    leaving.cancel()
    with lease:
        pass
    with await next_one:
        assert leaving.cancelled()
        assert pool.waiting == 0


@in_virtual_time
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    pool = pool_of(replica_of(1), length=2)
    await pool.lease(demand_of(1))
    waiters = [await leasing(pool) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
        await pool.lease(demand_of(1))
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    assert pool.waiting == 2
    for waiter in waiters:
        waiter.cancel()


@in_virtual_time
async def test_a_queue_of_no_length_serves_who_finds_a_free_slot() -> None:
    pool = pool_of(replica_of(1), length=0)
    with await pool.lease(demand_of(1)), pytest.raises(QueueFull):
        await pool.lease(demand_of(1))
    await pool.lease(demand_of(1))


@in_virtual_time
async def test_patience_ends() -> None:
    pool = pool_of(replica_of(1), patience_s=SHORT_S)
    await pool.lease(demand_of(1))
    waiter = await leasing(pool)
    await advance(SHORT_S - 1)
    assert not waiter.done()
    await advance(1)
    with pytest.raises(QueueTimeout, match="within 30 s"):
        await waiter
    assert pool.waiting == 0


@in_virtual_time
async def test_a_waiter_whose_patience_ends_lets_those_behind_it_go_on() -> None:
    pool = pool_of(replica_of(2), patience_s=SHORT_S)
    await pool.lease(demand_of(1))
    large, small = await leasing(pool, 2), await leasing(pool, 1)
    # The patience of both ends in the same moment.
    await advance(SHORT_S)
    with pytest.raises(QueueTimeout):
        await large
    assert (await small).tasks == 1


# Replicas that are not ready.


@in_virtual_time
async def test_a_call_waits_for_a_model_that_is_loading() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    replica.become(State.LOADING, "x")
    waiter = await leasing(pool)
    assert not waiter.done()
    replica.become(State.READY, "x")
    assert (await waiter).replica is replica


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (State.UNKNOWN, "is loading"),
        (State.LOADING, "is loading"),
        (State.BACKOFF, "is loading"),
        (State.UNREACHABLE, "cannot be reached"),
        (State.STOPPED, "is not loaded"),
    ],
)
@in_virtual_time
async def test_patience_with_a_model_that_is_not_ready_is_shorter(state: State, why: str) -> None:
    replica = replica_of(1)
    pool = pool_of(replica, patience_s=LONG_S, unready_patience_s=SHORT_S)
    replica.become(state, "an internal reason")
    waiter = await leasing(pool)
    await advance(SHORT_S)
    with pytest.raises(NotReady, match=why) as caught:
        await waiter
    assert "internal" not in caught.value.message
    assert caught.value.retry_after_s == 1.0


@in_virtual_time
async def test_patience_with_a_ready_model_is_not_ended_by_the_shorter_one() -> None:
    pool = pool_of(replica_of(1), patience_s=LONG_S, unready_patience_s=SHORT_S)
    await pool.lease(demand_of(1))
    waiter = await leasing(pool)
    await advance(LONG_S - 1)
    assert not waiter.done()
    await advance(1)
    with pytest.raises(QueueTimeout):
        await waiter


@in_virtual_time
async def test_a_model_that_cannot_be_started_refuses_everyone_at_once() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    replica.become(State.LOADING, "x")
    waiter = await leasing(pool)
    replica.become(State.FAILED, "its last log lines")
    with pytest.raises(NotReady, match="could not be started") as caught:
        await waiter
    assert "log lines" not in caught.value.message
    with pytest.raises(NotReady):
        await pool.lease(demand_of(1))
    assert pool.waiting == 0


@in_virtual_time
async def test_one_replica_that_failed_is_no_reason_to_refuse_while_another_may_come() -> None:
    failed, loading = replica_of(1), replica_of(1)
    pool = pool_of(failed, loading)
    failed.become(State.FAILED, "x")
    loading.become(State.LOADING, "x")
    waiter = await leasing(pool)
    loading.become(State.READY, "x")
    assert (await waiter).replica is loading


@in_virtual_time
async def test_a_call_with_more_tasks_than_slots_is_refused_at_once_also_behind_others() -> None:
    pool = pool_of(replica_of(2))
    with pytest.raises(InvalidRequest, match=r"3 tasks .* 2 slots") as caught:
        await pool.lease(demand_of(3))
    assert caught.value.param == "n"
    await pool.lease(demand_of(2))
    waiter = await leasing(pool)
    with pytest.raises(InvalidRequest):
        await pool.lease(demand_of(3))
    assert pool.waiting == 1
    waiter.cancel()


@in_virtual_time
async def test_a_call_that_only_a_replica_in_trouble_can_take_waits_for_it() -> None:
    small, large = replica_of(1), replica_of(4)
    pool = pool_of(small, large)
    large.become(State.UNREACHABLE, "x")
    waiter = await leasing(pool, 3)
    assert not waiter.done()
    large.become(State.READY, "x")
    assert (await waiter).replica is large


@in_virtual_time
async def test_how_many_slots_there_are_is_not_judged_before_a_replica_is_ready() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    replica.become(State.LOADING, "x")
    waiter = await leasing(pool, 9)
    assert not waiter.done()
    replica.become(State.READY, "x")
    with pytest.raises(InvalidRequest):
        await waiter


# The end.


@in_virtual_time
async def test_a_pool_that_closes_lets_nobody_wait_and_takes_leases_back() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    lease = await pool.lease(demand_of(1))
    waiter = await leasing(pool)
    pool.close()
    with pytest.raises(ShuttingDown):
        await waiter
    with lease:
        pass
    assert replica.busy == 0
    with pytest.raises(ShuttingDown):
        await pool.lease(demand_of(1))


@in_virtual_time
async def test_who_is_refused_is_told_to_come_back_when_the_queue_will_have_been_served() -> None:
    pool = pool_of(replica_of(1), replica_of(1))
    assert pool.retry_after_s() == 1.0
    with await pool.lease(demand_of(1)):
        await advance(10)
    # Leases take ten seconds, and there are two slots.
    assert pool.retry_after_s() == 5.0
    first, second = await pool.lease(demand_of(1)), await pool.lease(demand_of(1))
    waiters = [await leasing(pool) for _ in range(3)]
    assert pool.retry_after_s() == 20.0
    for lease in (first, second):
        with lease:
            pass
    for waiter in waiters:
        waiter.cancel()


@in_virtual_time
async def test_a_model_without_any_replica_is_waited_for() -> None:
    pool, told = pool_of(unready_patience_s=SHORT_S), []
    pool.on_wanted = lambda: told.append(pool.waiting)
    patient, impatient = await leasing(pool), await leasing(pool)
    assert (told, pool.slots, pool.ready) == ([1, 2], 0, False)
    impatient.cancel()
    replica = replica_of(1)
    pool.change([replica])
    assert (await patient).replica is replica
    pool.change([])
    waiter = await leasing(pool)
    await advance(SHORT_S)
    with pytest.raises(NotReady):
        await waiter


@in_virtual_time
async def test_replicas_that_were_replaced_say_nothing_of_what_a_call_may_take() -> None:
    old, new = replica_of(4, "old"), replica_of(2, "new", context=10)
    pool = pool_of(old, new)
    with await pool.lease(demand_of(4)) as lease:
        assert lease.replica is old
        old.drain()
        with pytest.raises(InvalidRequest, match=r"4 tasks .* 2 slots"):
            await pool.lease(demand_of(4))
        with pytest.raises(ContextLengthExceeded):
            await pool.lease(demand_of(text="word " * 100))
        # Without the others it may take calls again.
        new.become(State.UNREACHABLE, "x")
        waiter = await leasing(pool, 4)
        old.drain(draining=False)
        assert not waiter.done()
    assert (await waiter).replica is old


@in_virtual_time
async def test_all_who_wait_are_refused_whoever_they_are() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    await pool.lease(demand_of(1))
    principals = [Principal(f"client-{number}", priority=priority) for priority in Priority for number in range(2)]
    waiters = [await leasing(pool, demand_of(1, principal)) for principal in principals for _ in range(2)]
    pool.refuse(NotReady("it does not fit"))
    await settle()
    assert all(isinstance(waiter.exception(), NotReady) for waiter in waiters)
    assert pool.waiting == 0


@in_virtual_time
async def test_other_settings_count_from_now_on() -> None:
    pool = pool_of(replica_of(1), length=0)
    with await pool.lease(demand_of(1)):
        with pytest.raises(QueueFull):
            await pool.lease(demand_of(1))
        pool.go_by(QueueSettings(length=1, patience_s=SHORT_S), Balance.STICKY)
        waiter = await leasing(pool)
        await advance(SHORT_S)
        with pytest.raises(QueueTimeout):
            await waiter
    assert pool.routing.balance is Balance.STICKY


# Who comes back.


@in_virtual_time
async def test_who_has_lost_a_slot_comes_before_everybody_and_is_not_refused() -> None:
    replica = replica_of(1)
    pool = pool_of(replica, length=1)
    lease = await pool.lease(demand_of())
    eager = await leasing(pool, demand_of(principal=Principal("eager", priority=Priority.INTERACTIVE)))
    call = demand_of().call
    back = await leasing(pool, Demand(call, Principal("back"), 40, returns=True))
    assert (pool.waiting, pool.waiting_of(Priority.DEFAULT)) == (2, 1)
    assert pool.told_wait(call) == "queued place=1 waiting=2"
    with lease:
        pass
    await settle()
    assert (back.done(), eager.done(), pool.told_wait(call)) == (True, False, "")
    with back.result():
        pass
    await settle()
    with eager.result():
        pass
    assert (pool.waiting, replica.busy) == (0, 0)


@in_virtual_time
async def test_who_comes_back_and_leaves_is_gone() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    with await pool.lease(demand_of()):
        back = await leasing(pool, Demand(demand_of().call, Principal("back"), 40, returns=True))
        back.cancel()
        await settle()
        assert pool.waiting == 0


@in_virtual_time
async def test_what_a_model_that_loads_is_waited_for_is_told() -> None:
    replica = replica_of(1)
    pool = pool_of(replica)
    replica.become(State.LOADING, "x")
    call = demand_of().call
    waiting = await leasing(pool, Demand(call, Principal("a"), 40))
    assert pool.told_wait(call) == "loading place=1 waiting=1"
    pool.ready_at = asyncio.get_running_loop().time() + 3.5
    assert pool.told_wait(call) == "loading place=1 waiting=1 ready_s=4"
    waiting.cancel()
    await settle()
