"""Slots of a llama-server that other Corrals use too: one case after the other, on a book in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest

from corral.core.balance import Balance
from corral.core.errors import QueueFull, QueueTimeout, SharedStateAway
from corral.core.holding import Answer, Ask
from corral.core.lifecycle import State
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from corral.upstream.shared.book import RETRY_S
from corral.upstream.watches import Watches
from support.pools import demand_of, leasing, pool_of, replica_of
from support.sharers import Sharer, settled, sharing_of
from support.slot_books import MemoryBook
from support.virtual_time import VirtualLoop, advance, in_virtual_time

LEASE_S = 6.0
# Time moves so far at once; what is refreshed is refreshed in between.
STEP_S = 0.25
NAME = "r0"


class Corrals:
    """Several Corrals and their book. Written by its test."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.book = MemoryBook(loop.time, LEASE_S)
        self.all: list[Sharer] = []

    async def begin(
        self, *slots: int, away: Literal["refuse", "share"] = "refuse", corrals: int = 1, **settings: float
    ) -> Sharer:
        corral = Sharer(sharing_of(self.book, LEASE_S, away=away, corrals=corrals), slots, **settings)
        self.all.append(corral.begin(self.loop))
        await self.settle()
        return corral

    async def settle(self) -> None:
        await settled(self.loop)

    async def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            await advance(STEP_S)
            await self.settle()

    async def comes(self, corral: Sharer, tasks: int = 1) -> "asyncio.Task[Lease]":
        return await self.comes_to(corral.pool, tasks)

    async def comes_to(self, pool: Pool, tasks: int = 1) -> "asyncio.Task[Lease]":
        task = await leasing(pool, tasks)
        await self.settle()
        return task

    async def ends(self, *tasks: "asyncio.Task[Lease]") -> None:
        for task in tasks:
            with task.result():
                pass
        await self.settle()


@asynccontextmanager
async def corrals() -> AsyncIterator[Corrals]:
    """Corrals that end with the block; they hold nothing then."""
    several = Corrals()
    try:
        yield several
    finally:
        for corral in several.all:
            corral.end()
        await several.settle()
    assert several.book.held(NAME) == 0


async def refusal(task: "asyncio.Task[Lease]") -> BaseException | None:
    assert task.done()
    return task.exception()


@in_virtual_time
async def test_calls_that_come_together_are_asked_for_together() -> None:
    async with corrals() as several:
        corral = await several.begin(4)
        before = several.book.asked
        calls = [asyncio.create_task(corral.pool.lease(demand_of())) for _ in range(4)]
        await several.settle()
        assert all(call.done() for call in calls)
        # They come one by one, and the first is asked for before the others are there; a second question has the rest.
        assert several.book.asked - before <= 2
        await several.ends(*calls)


@in_virtual_time
async def test_a_corral_with_a_flood_gives_another_one_its_turns() -> None:
    async with corrals() as several:
        busy, quiet = await several.begin(2), await several.begin(2)
        flood = [await several.comes(busy) for _ in range(12)]
        guests = [await several.comes(quiet) for _ in range(3)]
        served: list[str] = []
        running = dict.fromkeys(flood[:2], "flood")
        while flood or guests:
            done = next(iter(running))
            running.pop(done)
            (flood if done in flood else guests).remove(done)
            await several.ends(done)
            for name, tasks in (("flood", flood), ("guest", guests)):
                for task in tasks:
                    if task.done() and task not in running:
                        running[task] = name
                        served.append(name)
        # The flood was in line before the first guest; then they take turns.
        assert served[:6] == ["flood", "guest", "flood", "guest", "flood", "guest"]


@in_virtual_time
async def test_a_call_for_all_slots_is_not_overtaken_for_ever_by_small_ones_elsewhere() -> None:
    async with corrals() as several:
        large, small = await several.begin(3), await several.begin(3)
        running = [await several.comes(small) for _ in range(3)]
        waiting = [await several.comes(small) for _ in range(5)]
        whole = await several.comes(large, 3)
        for task in running:
            await several.ends(task)
        # What was in line before it is served, and nobody else.
        assert [task.done() for task in waiting] == [True, False, False, False, False]
        assert not whole.done()
        await several.ends(waiting[0])
        assert whole.done()
        await several.ends(whole)
        assert all(task.done() for task in waiting[1:4])
        await several.ends(*waiting[1:4])
        await several.ends(waiting[4])


@in_virtual_time
async def test_slots_of_a_killed_corral_are_free_when_its_lease_ends() -> None:
    async with corrals() as several:
        dies, stays = await several.begin(2), await several.begin(2)
        calls = [await several.comes(dies, 2)]
        waits = await several.comes(stays)
        dies.die()
        await several.passes(LEASE_S - STEP_S)
        assert not waits.done()
        await several.passes(2 * STEP_S)
        await several.ends(waits, *calls)


@in_virtual_time
async def test_a_corral_that_is_killed_in_line_keeps_nobody_waiting_for_longer_than_its_place() -> None:
    async with corrals() as several:
        holds, dies, stays = [await several.begin(1) for _ in range(3)]
        call = await several.comes(holds)
        left = await several.comes(dies)
        waits = await several.comes(stays)
        dies.die()
        left.cancel()
        await several.ends(call)
        assert not waits.done()
        await several.passes(LEASE_S / 3 + STEP_S)
        await several.ends(waits)


@in_virtual_time
async def test_a_message_that_is_lost_costs_a_moment() -> None:
    async with corrals() as several:
        first, second = await several.begin(1), await several.begin(1)
        call, waits = await several.comes(first), await several.comes(second)
        several.book.mute = True
        await several.ends(call)
        assert not waits.done()
        await several.passes(LEASE_S / 6 + STEP_S)
        await several.ends(waits)


@in_virtual_time
async def test_a_waiter_that_leaves_while_its_slot_is_asked_for_leaves_nothing_behind() -> None:
    async with corrals() as several:
        several.book.turns = 3
        first, second = await several.begin(1), await several.begin(1)
        call = asyncio.create_task(first.pool.lease(demand_of()))
        for _ in range(4):
            await asyncio.sleep(0)
        call.cancel()
        other = await several.comes(second)
        assert several.book.held(NAME) == 1
        await several.ends(other)


@in_virtual_time
async def test_who_is_let_in_for_free_slots_alone_does_not_wait_when_there_are_none() -> None:
    async with corrals() as several:
        several.book.mute = True
        first, second = await several.begin(2), await several.begin(2, length=0)
        call = await several.comes(first, 2)
        with pytest.raises(QueueFull):
            await second.pool.lease(demand_of())
        await several.ends(call)


@in_virtual_time
async def test_a_queue_without_places_takes_as_many_at_once_as_there_are_slots() -> None:
    async with corrals() as several:
        several.book.turns = 3
        corral = await several.begin(3, length=0)
        calls = [asyncio.create_task(corral.pool.lease(demand_of())) for _ in range(4)]
        await several.settle()
        assert isinstance(await refusal(calls[3]), QueueFull)
        await several.ends(*calls[:3])


@in_virtual_time
async def test_patience_counts_what_is_asked_for() -> None:
    async with corrals() as several:
        first, second = await several.begin(1), await several.begin(1, patience_s=2.0)
        call, waits = await several.comes(first), await several.comes(second)
        await several.passes(2.0)
        assert isinstance(await refusal(waits), QueueTimeout)
        await several.ends(call)


# Away.


@in_virtual_time
async def test_without_the_book_calls_are_refused_and_what_runs_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "corral.sharing")
    async with corrals() as several:
        corral, other = await several.begin(2), await several.begin(2)
        runs, ends = await several.comes(corral), await several.comes(other)
        waits = await several.comes(corral, 2)
        several.book.stop()
        await several.settle()
        await several.passes(RETRY_S)
        assert isinstance(await refusal(waits), SharedStateAway)
        with pytest.raises(SharedStateAway, match="cannot be shared at the moment") as refused:
            await corral.pool.lease(demand_of())
        assert refused.value.retry_after_s
        await several.passes(20.0)
        await several.ends(ends)
        several.book.come_back(forgetful=True)
        await several.passes(RETRY_S)
        # It has said what it holds, and waits until everybody else has.
        assert several.book.held(NAME) == 1
        late = await several.comes(other)
        assert not late.done()
        await several.passes(RETRY_S + 2.0)
        await several.ends(late, runs)
    assert [record.message for record in caplog.records] == ["valkey lost"] * 2 + ["valkey returned"] * 2
    fields = vars(caplog.records[0])["fields"]
    assert fields == {"why": "away", "away": "refuse"}


@in_virtual_time
async def test_a_book_that_has_forgotten_nothing_is_asked_at_once() -> None:
    async with corrals() as several:
        corral = await several.begin(2)
        runs = await several.comes(corral)
        several.book.stop()
        await several.passes(1.0)
        several.book.come_back(forgetful=False)
        await several.passes(RETRY_S)
        await several.ends(await several.comes(corral), runs)


@in_virtual_time
async def test_without_the_book_each_takes_its_share() -> None:
    async with corrals() as several:
        corral = await several.begin(5, away="share", corrals=2, patience_s=1000.0)
        several.book.stop()
        await several.passes(RETRY_S)
        assert (corral.pool.slots, corral.pool.usable) == (5, 2)
        calls = [await several.comes(corral) for _ in range(3)]
        assert [call.done() for call in calls] == [True, True, False]
        with pytest.raises(SharedStateAway):
            await corral.pool.lease(demand_of(3))
        await several.ends(calls[0])
        several.book.come_back(forgetful=True)
        await several.passes(RETRY_S)
        assert several.book.held(NAME) == 2
        await several.passes(3.0)
        whole = await several.comes(corral, 3)
        assert several.book.held(NAME) == 5
        await several.ends(*calls[1:], whole)


@in_virtual_time
async def test_a_share_of_nothing_is_nothing() -> None:
    async with corrals() as several:
        corral = await several.begin(2, away="share", corrals=3)
        several.book.stop()
        await several.passes(RETRY_S)
        with pytest.raises(SharedStateAway):
            await corral.pool.lease(demand_of())


@in_virtual_time
async def test_without_the_book_own_replicas_serve() -> None:
    several = Corrals()
    sharing = sharing_of(several.book)
    shared, own = replica_of(4, "shared"), replica_of(1, "own")
    shared.shared = sharing.holding()
    pool = pool_of(shared, own, balance=Balance.LEAST_BUSY)
    shared.shared.lose()
    with await pool.lease(demand_of()) as lease:
        assert lease.replica is own
        with pytest.raises(SharedStateAway):
            await pool.lease(demand_of(2))
    own.become(State.UNREACHABLE, "the test says so")
    with pytest.raises(SharedStateAway):
        await pool.lease(demand_of())


class SlowBook(MemoryBook):
    """Its answers come late."""

    delay_s = 0.0

    async def hold(self, holder: str, name: str, ask: Ask) -> Answer:
        answer = await super().hold(holder, name, ask)
        await asyncio.sleep(self.delay_s)
        return answer


@in_virtual_time
async def test_an_answer_that_comes_after_its_lease_counts_for_nothing() -> None:
    """A process that was stopped for a while finds it when it goes on."""
    several = Corrals()
    several.book = book = SlowBook(several.loop.time, LEASE_S)
    paused, other = await several.begin(1), await several.begin(1)
    book.delay_s = LEASE_S
    call = await several.comes(paused)
    book.delay_s = 0.0
    await advance(LEASE_S)
    taken = await several.comes(other)
    assert taken.done() != call.done()
    assert book.held(NAME) == 1
    first, second = (taken, call) if taken.done() else (call, taken)
    await several.ends(first)
    await several.ends(second)
    for corral in several.all:
        corral.end()


# Beside the rest.


@in_virtual_time
async def test_where_a_call_goes_depends_on_what_others_have_there() -> None:
    several = Corrals()
    sharing = sharing_of(several.book)
    replicas = [replica_of(4, name) for name in ("r0", "r1")]
    for replica in replicas:
        replica.shared = sharing.holding()
    pool = pool_of(*replicas, balance=Balance.LEAST_BUSY)
    tasks = [asyncio.create_task(sharing.keep(replica)) for replica in replicas]
    tasks.append(asyncio.create_task(sharing.run()))
    await several.settle()
    several.book.decide("other", "r0", Ask(4, 3, ()))
    await several.settle()
    assert [replica.elsewhere for replica in replicas] == [3, 0]
    # All in one moment: those that are on their way there count too.
    calls = [asyncio.create_task(pool.lease(demand_of())) for _ in range(4)]
    await several.settle()
    assert [call.result().replica.name for call in calls].count("r1") >= 3
    await several.ends(*calls)
    for task in tasks:
        task.cancel()


@in_virtual_time
async def test_a_replica_that_is_in_the_settings_no_more_is_stated_until_its_last_call_has_ended() -> None:
    several = Corrals()
    sharing = sharing_of(several.book, LEASE_S)
    replica = replica_of(2, NAME)
    replica.shared = sharing.holding()
    pool = pool_of(replica)
    watches = Watches(sharing)
    async with asyncio.TaskGroup() as watches.group:
        listening = watches.group.create_task(sharing.run())
        watches.begin(replica)
        await several.settle()
        call = await several.comes_to(pool)
        pool.change(())
        watches.end(replica)
        await several.passes(2 * LEASE_S)
        assert several.book.held(NAME) == 1
        await several.ends(call)
        assert several.book.held(NAME) == 0
        listening.cancel()


@in_virtual_time
async def test_who_begins_when_valkey_has_just_been_started_waits_until_the_others_have_stated_what_they_hold() -> None:
    async with corrals() as several:
        old = await several.begin(1)
        call = await several.comes(old)
        several.book.stop()
        several.book.come_back(forgetful=True)
        new = await several.begin(1)
        early = await several.comes(new)
        assert not early.done()
        await several.passes(RETRY_S + 2.0)
        assert new.replicas[0].elsewhere == 1
        await several.ends(call)
        await several.ends(early)


@in_virtual_time
async def test_what_nobody_shares_asks_nobody() -> None:
    pool = pool_of(replica_of(1))
    with await pool.lease(demand_of()) as lease:
        assert lease.replica.shared is None
