"""What the queue promises, whatever happens in whatever order."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.core.balance import Balance
from corral.core.demand import Demand
from corral.core.errors import (
    ContextLengthExceeded,
    CorralError,
    InvalidRequest,
    NotReady,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from corral.core.holding import Ask
from corral.core.lifecycle import State
from corral.core.principal import Principal, Priority
from corral.core.record import NO_USAGE
from corral.core.usage import Usage
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from corral.upstream.probe import Facts
from corral.upstream.replica import Replica
from support.pools import demand_of, pool_of, replica_of
from support.sharers import settled, sharing_of
from support.slot_books import MemoryBook
from support.virtual_time import VirtualLoop

PATIENCE_S = 60.0
# So slowly are prompts read that it is worth to wait for a cache.
READING_S = 100.0
UNREADY_PATIENCE_S = 30.0
LIFT_S = 10.0
CLIENTS = [
    Principal("a"),
    Principal("b", weight=3.0),
    Principal("c", priority=Priority.BATCH),
    Principal("d", priority=Priority.INTERACTIVE),
]
# What a Corral holds is stated anew each third of it, so time must not jump further.
LEASE_S = 15.0
STEP_S = 2.0
# Short; long enough to have a prefix; too long for most replicas; for all of them.
LONG = "word " * 230
LONGER = "word " * 800
TOO_LONG = "word " * 4100
TEXTS = ["hi", LONG, LONG + "and more", LONGER, TOO_LONG]


@dataclass(eq=False)
class Arrival:
    """A call, as the one who makes it knows it."""

    task: "asyncio.Task[Lease]"
    demand: Demand
    arrived_at: float


class Queueing(RuleBasedStateMachine):
    """Calls come, leave, and end; replicas go and come back; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.waiting: list[Arrival] = []
        self.leases: list[Lease] = []
        self.closed = False

    @initialize(
        slots=st.lists(st.sampled_from([1, 1, 2, 4]), min_size=1, max_size=3),
        length=st.integers(0, 6),
        per_client=st.integers(0, 6),
        balance=st.sampled_from([*Balance, *[Balance.PREFIX] * 3]),
    )
    def begin(self, slots: list[int], length: int, per_client: int, balance: Balance) -> None:
        self.length, self.per_client = length, per_client
        self.replicas = [replica_of(count, f"r{number}", context=300) for number, count in enumerate(slots)]
        # The first can take what is too long for the others.
        self.replicas[0].facts = Facts(slots=slots[0], context=1000, shows_slots=False)
        self.prepare()
        self.pool: Pool = pool_of(
            *self.replicas,
            balance=balance,
            length=length,
            per_client=per_client,
            lift_s=LIFT_S,
            patience_s=PATIENCE_S,
            batch_patience_s=PATIENCE_S,
            unready_patience_s=UNREADY_PATIENCE_S,
        )

    @rule(
        tasks=st.sampled_from([1, 1, 1, 2, 5]),
        avoid=st.sampled_from([set(), set(), {0}, {1, 2}]),
        client=st.sampled_from(CLIENTS),
        text=st.sampled_from(TEXTS),
    )
    def a_call_comes(self, tasks: int, avoid: set[int], client: Principal, text: str) -> None:
        ahead = len(self.waiting)
        own = sum(arrival.demand.principal == client for arrival in self.waiting)
        avoided = [replica for number, replica in enumerate(self.replicas) if number in avoid]
        demand = demand_of(tasks, client, text=text)
        task = self.loop.create_task(self.pool.lease(demand, avoid=avoided))
        self.waiting.append(Arrival(task, demand, self.loop.time()))
        self.do()
        refusal = self.refusal(task)
        if isinstance(refusal, QueueFull):
            assert ahead >= self.length or own >= self.per_client
        if isinstance(refusal, InvalidRequest):
            assert tasks > max(replica.slots for replica in self.replicas if demand.may_fit(replica.context))
        if isinstance(refusal, ContextLengthExceeded):
            assert text == TOO_LONG

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_call_is_cut_and_comes_back(self, data: st.DataObject) -> None:
        """It is not refused for a full queue, and nobody who came before it is served before it."""
        lease = data.draw(st.sampled_from(self.leases))
        self.do(self.end_of(lease, failed=True))
        call, principal = lease.demand.call, lease.demand.principal
        demand = Demand(call, principal, lease.demand.body_bytes, returns=True)
        self.waiting.append(Arrival(self.loop.create_task(self.pool.lease(demand)), demand, self.loop.time()))
        task = self.waiting[-1].task
        self.do()
        assert not isinstance(self.refusal(task), QueueFull)
        if not task.done():
            first = next(place.who.demand for place in self.pool._queue.in_turn(self.loop.time(), LIFT_S))
            assert first.returns

    @rule(number=st.integers(0, 2), text=st.sampled_from(TEXTS))
    def a_replica_has_read_a_prompt(self, number: int, text: str) -> None:
        self.replicas[number % len(self.replicas)].prefixes.learn(demand_of(text=text).prompt)
        self.pool.routing._measure(10_000, READING_S)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_waiter_leaves(self, data: st.DataObject) -> None:
        self.do(data.draw(st.sampled_from(self.waiting)).task.cancel)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_call_ends(self, data: st.DataObject) -> None:
        usage = data.draw(st.builds(Usage, st.integers(0, 300), st.sampled_from([0, 250]), st.integers(0, 300)))
        failed = data.draw(st.sampled_from([None, True, False]))
        self.do(self.end_of(data.draw(st.sampled_from(self.leases)), usage, failed=failed))

    @precondition(lambda self: self.leases and self.waiting)
    @rule(data=st.data(), leaves_first=st.booleans())
    def a_call_ends_in_the_moment_in_which_a_waiter_leaves(self, data: st.DataObject, leaves_first: bool) -> None:
        lease, waiter = data.draw(st.sampled_from(self.leases)), data.draw(st.sampled_from(self.waiting))
        both: list[Callable[[], object]] = [waiter.task.cancel, self.end_of(lease)]
        self.do(*(both if leaves_first else reversed(both)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), seconds=st.sampled_from([UNREADY_PATIENCE_S, PATIENCE_S]))
    def a_call_ends_in_the_moment_in_which_patience_does(self, data: st.DataObject, seconds: float) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.loop.call_later(seconds, self.end_of(lease))
        self.do(seconds=seconds)

    @rule(number=st.integers(0, 2), state=st.sampled_from([*State, *[State.READY] * len(State)]))
    def a_replica_changes(self, number: int, state: State) -> None:
        self.do(partial(self.replicas[number % len(self.replicas)].become, state, "the test says so"))

    @rule(seconds=st.sampled_from([1.0, 29.0, 30.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(seconds=seconds)
        # A client may have been passed over for too long by now; who watches a replica looks every few seconds.
        self.do(self.pool.dispatch)

    @rule(really=st.integers(0, 30))
    def the_pool_closes(self, really: int) -> None:
        # Seldom: nothing of interest happens afterwards.
        if really == 30:
            self.closed = True
            self.do(self.pool.close)

    # What is promised.

    @invariant()
    def no_replica_has_more_tasks_than_slots(self) -> None:
        for replica in self.served():
            assert replica.busy == sum(lease.tasks for lease in self.leases if lease.replica is replica)
            assert replica.busy <= replica.slots

    @invariant()
    def no_slot_is_free_that_the_first_who_may_run_there_could_take(self) -> None:
        if not all(replica.breaker.closed for replica in self.served()):
            # Whether one may be tried again changes with time; who watches a replica looks every few seconds.
            self.do(self.pool.dispatch)
        now = self.loop.time()
        for replica in self.served():
            waiters = [place.who for place in self.pool._queue.in_turn(now, LIFT_S)]
            able = [each for each in waiters if replica in self.pool.routing.able(each.demand, now)]
            first = next((each for each in able if each.hold is None or not each.may_hold), None)
            assert first is None or replica.free < first.demand.tasks

    @invariant()
    def the_queue_is_bounded(self) -> None:
        if self.served():
            assert self.pool.waiting == len(self.waiting)
            # Those who have been served already are let in all the same.
            came = [arrival for arrival in self.waiting if not arrival.demand.returns]
            assert len(came) <= self.length
            for client in CLIENTS:
                own = sum(arrival.demand.principal == client for arrival in came)
                assert own <= self.per_client

    @invariant()
    def nobody_waits_longer_than_patience(self) -> None:
        assert all(self.loop.time() - arrival.arrived_at < PATIENCE_S for arrival in self.waiting)

    @invariant()
    def nobody_waits_for_what_cannot_come(self) -> None:
        if self.closed or (self.served() and all(replica.state is State.FAILED for replica in self.replicas)):
            assert self.waiting == []

    def teardown(self) -> None:
        try:
            self.everything_is_given_back()
        finally:
            self.loop.close()

    def everything_is_given_back(self) -> None:
        self.do(*(arrival.task.cancel for arrival in self.waiting))
        self.do(*(self.end_of(lease) for lease in self.leases))
        self.do(self.finish)
        assert self.waiting == []
        assert self.pool.waiting == 0
        assert [replica.busy for replica in self.replicas] == [0] * len(self.replicas)
        assert asyncio.all_tasks(self.loop) == set()

    # How the calls go on.

    def served(self) -> list[Replica]:
        return getattr(self, "replicas", [])

    def end_of(self, lease: Lease, usage: Usage = NO_USAGE, *, failed: bool | None = None) -> Callable[[], None]:
        def end() -> None:
            with lease:
                self.leases.remove(lease)
                lease.usage, lease.prefill_s, lease.failed = usage, READING_S if usage.prompt_tokens else None, failed

        return end

    def do(self, *actions: Callable[[], object], seconds: float = 0.0) -> None:
        """Do all of it in one moment, let the time pass, and see what became of those who waited."""

        async def run() -> None:
            for action in actions:
                action()
            await self.pass_time(seconds)

        self.loop.run_until_complete(run())
        self.take_stock()

    async def pass_time(self, seconds: float) -> None:
        await self.loop.advance(seconds)

    def prepare(self) -> None:
        """Before there is a pool."""

    def finish(self) -> None:
        """When all is given back."""

    def take_stock(self) -> None:
        done = [arrival for arrival in self.waiting if arrival.task.done()]
        granted = [arrival for arrival in done if self.refusal(arrival.task) is None and not arrival.task.cancelled()]
        stay = [arrival for arrival in self.waiting if not arrival.task.done()]
        for client in CLIENTS:
            self.nobody_is_overtaken_by_the_same_client(
                [each for each in granted if each.demand.principal == client and not each.demand.returns],
                [each for each in stay if each.demand.principal == client and not each.demand.returns],
            )
        self.leases += [arrival.task.result() for arrival in granted]
        self.waiting = stay

    def nobody_is_overtaken_by_the_same_client(self, granted: list[Arrival], stay: list[Arrival]) -> None:
        """Unless its call can go where the one that waits cannot."""
        if granted and stay and len(self.replicas) == 1:
            assert self.waiting.index(granted[-1]) < self.waiting.index(stay[0])

    def refusal(self, task: "asyncio.Task[Lease]") -> BaseException | None:
        if not task.done() or task.cancelled():
            return None
        error = task.exception()
        assert error is None or isinstance(
            error, QueueFull | QueueTimeout | NotReady | ShuttingDown | InvalidRequest | ContextLengthExceeded
        ), error
        assert error is None or isinstance(error, CorralError)
        return error


class SharedQueueing(Queueing):
    """The same where every slot has to be asked for, beside another Corral."""

    def prepare(self) -> None:
        self.book = MemoryBook(self.loop.time, LEASE_S)
        sharing = sharing_of(self.book, LEASE_S)
        for replica in self.replicas:
            replica.shared = sharing.holding()
        self.tasks = [self.loop.create_task(sharing.keep(replica)) for replica in self.replicas]
        self.tasks.append(self.loop.create_task(sharing.run()))

    @rule(number=st.integers(0, 2), keep=st.integers(0, 4), more=st.sampled_from([0, 1, 1, 2]))
    def the_other_corral_takes_or_gives_back(self, number: int, keep: int, more: int) -> None:
        replica = self.replicas[number % len(self.replicas)]
        ask = Ask(replica.slots, min(keep, self.book.held_by("other", replica.name)), (more,) if more else ())
        self.do(lambda: self.book.decide("other", replica.name, ask))

    @invariant()
    def the_book_is_right(self) -> None:
        for replica in self.served():
            other = self.book.held_by("other", replica.name)
            assert self.book.held(replica.name) == replica.busy + other <= replica.slots

    async def pass_time(self, seconds: float) -> None:
        while seconds > 0:
            # In steps, or leases would end before anyone can state them anew.
            await self.loop.advance(min(seconds, STEP_S))
            seconds -= STEP_S
        await settled(self.loop)

    def finish(self) -> None:
        for task in self.tasks:
            task.cancel()


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSharedQueueing = SharedQueueing.TestCase
TestSharedQueueing.settings = settings(max_examples=75, stateful_step_count=40, deadline=None)
