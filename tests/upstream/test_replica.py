"""A replica knows how its llama-server is, and what it is busy with."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from corral.core.breaker import FAILURES
from corral.core.errors import ConnectionLost, UpstreamLoading
from corral.core.lifecycle import State, Transition
from corral.upstream.address import Address
from corral.upstream.probe import Facts, Prober
from corral.upstream.replica import LINGER_LIMIT_S, READY_INTERVAL_S, Clocks, Replica
from support.exchanges import opened
from support.loops import on_both_loops
from support.pools import demand_of, leasing, pool_of, replica_of, taken
from support.told_llama import PROPS, ToldLlama, slot, told_llama, until

LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
LOST = ConnectionLost("the connection broke")


class Watched:
    """A replica that is being watched, and everything that was told of it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.transitions: list[Transition] = []
        self.changed = asyncio.Event()
        self.now_s = 0.0
        replica.on_transition = self.transitions.append
        replica.on_change = self.changed.set

    async def until(self, claim: Callable[[], bool]) -> None:
        await until(claim, self.changed)

    async def until_state(self, state: State) -> None:
        await self.until(lambda: self.replica.state is state)

    def states(self) -> list[State]:
        return [transition.new for transition in self.transitions]


@asynccontextmanager
async def watched(llama: ToldLlama, *, address: bool = True) -> AsyncIterator[Watched]:
    """Watch a replica at the address of the server, until the block is left."""
    async with opened() as client:
        clocks = Clocks(lambda: seen.now_s, time.time)
        replica = Replica("m/0", "m", Prober(client), clocks, address=llama.address if address else None, key="k")
        seen = Watched(replica)
        task = asyncio.create_task(replica.watch())
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()


# States.


@on_both_loops
async def test_a_server_that_is_ready_becomes_ready() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        replica = seen.replica
        assert (replica.state, replica.free) == (State.UNKNOWN, 0)
        await seen.until_state(State.READY)
        assert (replica.slots, replica.free, replica.busy) == (2, 2, 0)
        assert llama.asked[0] == ("/health", "k")
    (transition,) = seen.transitions
    assert (transition.replica, transition.model) == ("m/0", "m")
    assert (transition.old, transition.new, transition.why) == (State.UNKNOWN, State.READY, "2 slots")


@on_both_loops
async def test_a_server_that_loads_is_asked_until_it_is_ready() -> None:
    async with told_llama() as llama:
        llama.health = LOADING
        async with watched(llama) as seen:
            await seen.until_state(State.LOADING)
            await llama.until_asked("/health", times=2)
            llama.health = (200, {})
            await seen.until_state(State.READY)
    # To stay the same tells nobody.
    assert seen.states() == [State.LOADING, State.READY]


@on_both_loops
async def test_a_server_that_comes_later_is_found() -> None:
    async with told_llama() as llama:
        pass
    async with watched(llama) as seen:
        await seen.until_state(State.UNREACHABLE)
        assert seen.replica.free == 0
        async with told_llama(llama):
            await seen.until_state(State.READY)


@on_both_loops
async def test_a_suspicion_is_looked_into_at_once() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        seen.replica.suspect(LOST)
        assert (seen.replica.state, seen.replica.free) == (State.UNREACHABLE, 0)
        # Sooner than it would have been asked anyway.
        async with asyncio.timeout(READY_INTERVAL_S / 2):
            await seen.until_state(State.READY)
    assert seen.states() == [State.READY, State.UNREACHABLE, State.READY]


@on_both_loops
async def test_a_server_that_says_it_loads_is_loading() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        llama.health = LOADING
        seen.replica.suspect(UpstreamLoading("loading"))
        assert seen.replica.state is State.LOADING
        await llama.until_asked("/health")
        llama.health = (200, {})
        await seen.until_state(State.READY)


@pytest.mark.parametrize("state", [State.BACKOFF, State.FAILED, State.STOPPED, State.LOADING])
@on_both_loops
async def test_an_attempt_that_fails_late_does_not_undo_what_is_known_better(state: State) -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        # The child behind it has died, and the supervisor has said so.
        seen.replica.move(None, None)
        seen.replica.become(state, "the supervisor says so")
        seen.replica.suspect(LOST)
        assert (seen.replica.state, seen.replica.why) == (state, "the supervisor says so")


@pytest.mark.parametrize("last_words", [(200, {}), LOADING])
@on_both_loops
async def test_what_the_old_address_answers_counts_no_more(last_words: tuple[int, object]) -> None:
    async with told_llama() as old, told_llama() as new, watched(old) as seen:
        await seen.until_state(State.READY)
        old.answers.clear()
        new.answers.clear()
        seen.replica.suspect(LOST)
        await old.until_asked("/health")
        seen.replica.move(None, None)
        seen.replica.become(State.BACKOFF, "it died")
        seen.replica.move(new.address, "new")
        old.health = last_words
        old.answers.set()
        await new.until_asked("/health")
        assert seen.replica.state is State.BACKOFF
        new.answers.set()
        await seen.until_state(State.READY)
        assert new.asked[-1] == ("/props", "new")
    assert seen.states() == [State.READY, State.UNREACHABLE, State.BACKOFF, State.READY]


@on_both_loops
async def test_a_server_that_comes_back_with_other_settings_is_believed() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        llama.props = (200, PROPS | {"total_slots": 8})
        seen.replica.suspect(LOST)
        await seen.until_state(State.READY)
        assert seen.replica.slots == 8


@on_both_loops
async def test_a_child_that_has_no_address_yet_is_not_asked() -> None:
    async with told_llama() as llama, watched(llama, address=False) as seen:
        seen.replica.become(State.LOADING, "started")
        assert llama.asked == []
        seen.replica.move(llama.address, "k")
        await seen.until_state(State.READY)


def test_a_child_that_was_started_anew_is_trusted() -> None:
    replica = replica_of(1)
    for _ in range(FAILURES):
        replica.breaker.ended(0.0, failed=True, trial=False)
    assert not replica.breaker.closed
    replica.move(Address("127.0.0.1", 1), None)
    assert replica.breaker.closed


# Slots that were given up.


@on_both_loops
async def test_a_slot_that_was_given_up_is_busy_until_the_server_shows_it_free() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        replica, pool = seen.replica, pool_of(seen.replica)
        llama.show(slot(0, task=7), slot(1, task=8))
        kept = await pool.lease(demand_of(1))
        kept.started = True
        with await pool.lease(demand_of(1)) as lease:
            lease.started = lease.abandoned = True
        waiter = await leasing(pool)
        await llama.until_asked("/slots", times=4)
        assert (replica.lingering, replica.busy, waiter.done()) == (1, 2, False)
        llama.show(slot(0, task=7), slot(1))
        with await waiter:
            assert (replica.lingering, replica.busy) == (0, 2)
        with kept:
            pass
    assert replica.busy == 0


@on_both_loops
async def test_a_slot_whose_call_was_complete_is_free_at_once() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        pool = pool_of(seen.replica)
        with await pool.lease(demand_of(2)) as lease:
            lease.started = True
        assert seen.replica.busy == 0
        assert llama.count("/slots") == 0


def given_up(replica: Replica, tasks: int = 1) -> None:
    """A call whose client has left."""
    with taken(replica, tasks) as lease:
        lease.started = lease.abandoned = True


def test_who_waits_for_its_last_slot_is_told_when_its_process_has_gone_with_it() -> None:
    replica, told = replica_of(2), []
    replica.facts = Facts(slots=2, shows_slots=True)
    given_up(replica)
    replica.on_idle = lambda: told.append("idle")
    assert replica.busy == 1
    replica.become(State.BACKOFF, "it was killed")
    assert (replica.busy, told) == (0, ["idle"])


@on_both_loops
async def test_a_slot_of_a_server_that_does_not_show_them_is_free_at_once() -> None:
    async with told_llama() as llama:
        llama.props = (200, PROPS | {"endpoint_slots": False})
        async with watched(llama) as seen:
            await seen.until_state(State.READY)
            given_up(seen.replica)
            assert seen.replica.busy == 0


@on_both_loops
async def test_a_slot_that_is_never_shown_free_is_free_after_a_while() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        llama.show(slot(0, task=7), slot(1))
        given_up(seen.replica)
        await llama.until_asked("/slots", times=4)
        assert seen.replica.lingering == 1
        seen.now_s = LINGER_LIMIT_S
        await seen.until(lambda: seen.replica.lingering == 0)


@on_both_loops
async def test_a_server_that_does_not_answer_keeps_its_slots_busy() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        llama.slots = (500, {})
        given_up(seen.replica)
        await llama.until_asked("/slots", times=4)
        assert seen.replica.lingering == 1
        llama.show(slot(0), slot(1))
        await seen.until(lambda: seen.replica.lingering == 0)


@on_both_loops
async def test_a_suspicion_does_not_make_a_busy_slot_free() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        llama.show(slot(0, task=7), slot(1, task=8))
        given_up(seen.replica)
        seen.replica.suspect(LOST)
        # One more client leaves while the server is suspected.
        given_up(seen.replica)
        await seen.until_state(State.READY)
        assert (seen.replica.busy, seen.replica.free) == (2, 0)
        llama.show(slot(0), slot(1))
        await seen.until(lambda: seen.replica.free == 2)


@on_both_loops
async def test_a_server_that_died_is_busy_with_nothing() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        llama.show(slot(0, task=7), slot(1))
        given_up(seen.replica)
        seen.replica.become(State.BACKOFF, "it died")
        assert seen.replica.busy == 0
        given_up(seen.replica)
        assert seen.replica.busy == 0


@on_both_loops
async def test_leases_survive_what_happens_to_the_server() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        lease = taken(seen.replica, 1)
        seen.replica.suspect(LOST)
        assert (seen.replica.busy, seen.replica.free) == (1, 0)
        await seen.until_state(State.READY)
        assert seen.replica.free == 1
        with lease:
            pass
        assert seen.replica.free == 2


@on_both_loops
async def test_a_server_that_comes_back_with_fewer_slots_has_none_free_before_the_leases_end() -> None:
    async with told_llama() as llama, watched(llama) as seen:
        await seen.until_state(State.READY)
        lease = taken(seen.replica, 2)
        seen.replica.facts = Facts(slots=1, shows_slots=False)
        assert seen.replica.free == 0
        with lease:
            pass
        assert seen.replica.free == 1
