"""What several Corrals promise of the same llama-servers, whatever happens in whatever order."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.core.errors import CorralError, InvalidRequest, QueueTimeout, SharedStateAway
from corral.core.holding import Ask
from corral.upstream.lease import Lease
from support.pools import demand_of
from support.sharers import Sharer, settled, sharing_of
from support.slot_books import MemoryBook
from support.virtual_time import VirtualLoop

CORRALS = 3
LEASE_S = 6.0
# Shorter than anything that is waited for but an answer.
STEP_S = 0.25
PATIENCE_S = 60.0


@dataclass(eq=False)
class Request:
    """A call, as the one who makes it knows it."""

    task: "asyncio.Task[Lease]"
    corral: Sharer
    tasks: int


class Sharing(RuleBasedStateMachine):
    """Calls come, leave and end at several Corrals; these die and begin; the book is away and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.waiting: list[Request] = []
        self.leases: list[tuple[Sharer, Lease]] = []
        self.corrals: list[Sharer] = []
        # Something may be known too late, until leases have ended.
        self.blurred = False

    @initialize(slots=st.lists(st.integers(1, 4), min_size=1, max_size=2), turns=st.integers(0, 2))
    def begin(self, slots: list[int], turns: int) -> None:
        self.slots = slots
        self.book = MemoryBook(self.loop.time, LEASE_S)
        self.book.turns = turns
        self.do(*[self.start] * CORRALS)

    @rule(
        calls=st.lists(st.tuples(st.integers(0, CORRALS - 1), st.sampled_from([1, 1, 1, 2, 4])), min_size=1, max_size=6)
    )
    def calls_come_at_once(self, calls: list[tuple[int, int]]) -> None:
        self.do(*(self.arrival(self.corrals[number], tasks) for number, tasks in calls))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), more=st.integers(0, 3))
    def calls_end_while_others_come(self, data: st.DataObject, more: int) -> None:
        ends = data.draw(st.lists(st.sampled_from(self.leases), min_size=1, unique=True))
        arrivals = [self.arrival(data.draw(st.sampled_from(self.corrals)), 1) for _ in range(more)]
        self.do(*data.draw(st.permutations([*(self.end_of(*each) for each in ends), *arrivals])))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def waiters_leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.waiting), min_size=1, unique=True))
        self.do(*(each.task.cancel for each in gone))

    @rule(number=st.integers(0, CORRALS - 1), softly=st.booleans())
    def one_dies_and_another_begins(self, number: int, softly: bool) -> None:
        self.blurred = True
        self.do(lambda: self.stop(self.corrals[number], softly=softly), self.start)

    @rule()
    def messages_are_lost(self) -> None:
        self.blurred = True
        self.book.mute = True

    @rule(forgetful=st.booleans(), seconds=st.sampled_from([0.0, 0.5, 2.0, 20.0]), leave=st.booleans())
    def the_book_is_away(self, forgetful: bool, seconds: float, leave: bool) -> None:
        self.blurred = True
        self.do(self.book.stop, seconds=seconds)
        if leave:
            self.do(*(self.end_of(*each) for each in self.leases[::2]))
        self.do(lambda: self.book.come_back(forgetful=forgetful))

    @rule()
    def time_passes(self) -> None:
        self.do(seconds=2.0)

    @rule()
    def all_leases_have_ended(self) -> None:
        """Those of the dead count until somebody has asked, and everybody else has had the time to say a word."""
        self.book.mute = False
        self.do(seconds=2 * LEASE_S)
        for number, slots in enumerate(self.slots):
            self.book.decide("nobody", f"r{number}", Ask(slots, 0, ()))
        self.do(seconds=self.book.settle_s + STEP_S)
        self.blurred = False

    # What is promised.

    @invariant()
    def never_more_than_slots(self) -> None:
        for number, slots in enumerate(getattr(self, "slots", ())):
            assert self.in_flight(number) <= slots

    @invariant()
    def nobody_waits_for_slots_that_are_free(self) -> None:
        """There is one at least who waits for more than there are; who stands behind it does not overtake it."""
        if self.blurred:
            return
        for number, slots in enumerate(getattr(self, "slots", ())):
            able = [tasks for corral in self.corrals if (tasks := self.first_that_fits(corral, slots)) is not None]
            assert not able or max(able) > slots - self.in_flight(number)

    @invariant()
    def the_book_is_true(self) -> None:
        if not self.blurred and self.corrals:
            for number in range(len(self.slots)):
                assert self.book.held(f"r{number}") == self.in_flight(number)

    def teardown(self) -> None:
        try:
            if self.corrals:
                self.everything_is_given_back()
        finally:
            self.loop.close()

    def everything_is_given_back(self) -> None:
        self.all_leases_have_ended()
        self.do(*(each.task.cancel for each in self.waiting))
        self.do(*(self.end_of(*each) for each in self.leases))
        assert not any(self.book.held(f"r{number}") for number in range(len(self.slots)))
        asked = self.book.asked
        self.do(seconds=LEASE_S)
        assert self.book.asked == asked, "who holds nothing and wants nothing asks for nothing"
        self.do(*(each.end for each in self.corrals))
        assert asyncio.all_tasks(self.loop) == set()

    # How it goes on.

    def in_flight(self, number: int) -> int:
        return sum(lease.tasks for _, lease in self.leases if lease.replica.name == f"r{number}")

    def first_that_fits(self, corral: Sharer, slots: int) -> int | None:
        """The tasks of the call that stands in line for a corral: those before it are too large for the server."""
        return next((each.tasks for each in self.waiting if each.corral is corral and each.tasks <= slots), None)

    def start(self) -> None:
        corral = Sharer(sharing_of(self.book, LEASE_S), self.slots, patience_s=PATIENCE_S)
        self.corrals.append(corral.begin(self.loop))

    def stop(self, corral: Sharer, *, softly: bool) -> None:
        """All that runs there ends with it."""
        self.corrals.remove(corral)
        for each in self.waiting:
            if each.corral is corral:
                each.task.cancel()
        gone = [each for each in self.leases if each[0] is corral]
        self.leases = [each for each in self.leases if each[0] is not corral]
        if softly:
            for _, lease in gone:
                lease.__exit__()
            corral.end()
        else:
            corral.die()

    def arrival(self, corral: Sharer, tasks: int) -> Callable[[], None]:
        def come() -> None:
            task = self.loop.create_task(self.call(corral, tasks))
            self.waiting.append(Request(task, corral, tasks))

        return come

    async def call(self, corral: Sharer, tasks: int) -> Lease:
        lease = await corral.pool.lease(demand_of(tasks))
        self.leases.append((corral, lease))
        # In this very moment, not only when all has settled.
        self.never_more_than_slots()
        return lease

    def end_of(self, corral: Sharer, lease: Lease) -> Callable[[], None]:
        def end() -> None:
            self.leases.remove((corral, lease))
            lease.__exit__()

        return end

    def do(self, *actions: Callable[[], object], seconds: float = 0.0) -> None:
        """Do all of it in one moment, let the time pass, and see what became of those who waited."""

        async def run() -> None:
            for action in actions:
                action()
            await settled(self.loop)
            for _ in range(int(seconds / STEP_S)):
                await self.loop.advance(STEP_S)
                await settled(self.loop)

        self.loop.run_until_complete(run())
        done = [each for each in self.waiting if each.task.done()]
        self.waiting = [each for each in self.waiting if not each.task.done()]
        for each in done:
            error = None if each.task.cancelled() else each.task.exception()
            assert error is None or isinstance(error, QueueTimeout | SharedStateAway | InvalidRequest), error
            assert error is None or isinstance(error, CorralError)


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


def test_who_waits_behind_a_large_call_keeps_its_place() -> None:
    """It once gave it up and took it again for ever, two Corrals in turns."""
    state = Sharing()
    state.begin(slots=[2, 4], turns=0)
    state.calls_come_at_once(calls=[(0, 1), (0, 1), (0, 4), (1, 2), (1, 1)])
    state.calls_come_at_once(calls=[(2, 4), (0, 1), (2, 1)])
    state.never_more_than_slots()
    state.teardown()


def test_an_outage_gives_nothing_away_however_long_it_is() -> None:
    """Who comes first afterwards does not take what another one's calls still hold."""
    state = Sharing()
    state.begin(slots=[2, 4], turns=0)
    state.calls_come_at_once(calls=[(0, 1), (0, 1), (1, 4), (0, 2), (1, 1)])
    state.the_book_is_away(forgetful=False, leave=False, seconds=20.0)
    state.one_dies_and_another_begins(number=1, softly=False)
    state.calls_come_at_once(calls=[(2, 2), (0, 4), (0, 1), (1, 1), (1, 1), (2, 4)])
    state.never_more_than_slots()
    state.teardown()


def test_who_waits_for_more_than_is_free_is_not_overtaken_by_another_corral() -> None:
    state = Sharing()
    state.begin(slots=[2, 4], turns=0)
    state.calls_come_at_once(calls=[(0, 1), (0, 1), (0, 4), (0, 2), (1, 1)])
    state.never_more_than_slots()
    state.nobody_waits_for_slots_that_are_free()
    state.the_book_is_true()
    state.teardown()


def test_who_asks_elsewhere_keeps_its_place() -> None:
    """Two Corrals once went from one line to the other and back for ever, each woken by what the other gave up."""
    state = Sharing()
    state.begin(slots=[3, 4], turns=1)
    state.calls_come_at_once(calls=[(0, 1)])
    state.calls_come_at_once(calls=[(0, 1), (0, 1), (0, 1), (0, 1), (0, 2)])
    state.all_leases_have_ended()
    state.calls_come_at_once(calls=[(1, 1), (2, 1)])
    state.never_more_than_slots()
    state.teardown()


def test_what_a_dead_corral_held_is_free_a_moment_after_somebody_asks() -> None:
    """It was once kept for a whole lease more."""
    state = Sharing()
    state.begin(slots=[1], turns=0)
    state.calls_come_at_once(calls=[(0, 1)])
    state.one_dies_and_another_begins(number=0, softly=False)
    state.do(seconds=2 * LEASE_S)
    state.calls_come_at_once(calls=[(0, 1)])
    assert not state.leases
    state.do(seconds=state.book.settle_s + STEP_S)
    assert [lease.tasks for _, lease in state.leases] == [1]
    state.teardown()


def test_what_a_dead_corral_held_is_kept_once_however_seldom_somebody_asks() -> None:
    state = Sharing()
    state.begin(slots=[1], turns=0)
    state.calls_come_at_once(calls=[(2, 1)])
    state.one_dies_and_another_begins(number=2, softly=False)
    state.all_leases_have_ended()
    state.time_passes()
    state.calls_come_at_once(calls=[(0, 1)])
    state.nobody_waits_for_slots_that_are_free()
    state.the_book_is_true()
    state.teardown()
