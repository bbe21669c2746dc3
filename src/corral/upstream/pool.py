"""The replicas of one model, and the one queue in front of their slots."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from math import ceil

from corral.config import QueueSettings
from corral.core.balance import Balance
from corral.core.call import Call
from corral.core.demand import Demand
from corral.core.errors import CorralError, NotReady, ShuttingDown
from corral.core.fairness import Account, FairQueue, Place
from corral.core.lifecycle import State
from corral.core.principal import Priority
from corral.upstream.alarm import EARLY_S
from corral.upstream.asks import Asks
from corral.upstream.hopeless import beyond_all, crowded, impatient, why_unready, withheld
from corral.upstream.lease import Lease
from corral.upstream.pace import DEFAULT_RETRY_S, Pace
from corral.upstream.replica import Replica
from corral.upstream.routing import HELD, Choice, Routing
from corral.upstream.waiter import Waiter

log = logging.getLogger("corral.replica")


class Pool:
    """Fair between clients, and never more tasks at a replica than it has slots.

    One writer: ``dispatch``, synchronous, called whenever a waiter comes or goes,
    a lease ends or a replica changes. A call for more slots than are free waits
    until it is its turn and is then not overtaken. Slots of a shared replica are
    asked for first: the call waits, as short as that is, and nothing is leased
    that may be refused.
    """

    def __init__(self, name: str, replicas: Sequence[Replica], settings: QueueSettings, balance: Balance) -> None:
        self.name = name
        self.routing = Routing((), balance)
        self._settings = settings
        self._queue: FairQueue[Waiter] = FairQueue()
        # Where no replica is shared there is nothing to be asked.
        self._asks: Asks | None = None
        self._pace = Pace()
        self._closed = False
        # Told of a call that has to wait, while no replica is ready; set by who loads models.
        self.on_wanted: Callable[[], None] = _nothing
        # Why nobody need wait for this model; written by who loads models and by the operator.
        self.absent: str | None = None
        # Not loaded, and the first who waits will have it loaded.
        self.sleeping = False
        # When a model that loads is likely to be ready, on the loop's clock.
        self.ready_at: float | None = None
        self.change(replicas)

    def change(self, replicas: Sequence[Replica]) -> None:
        """Go to these replicas from now on; what others have been leased is given back all the same."""
        self.replicas = self.routing.replicas = tuple(replicas)
        for replica in self.replicas:
            replica.on_change = self.dispatch
        if self._asks is not None:
            self._asks.end()
        shared = [replica for replica in self.replicas if replica.shared is not None]
        self._asks = Asks(shared) if shared else None
        self.dispatch()

    def go_by(self, settings: QueueSettings, balance: Balance) -> None:
        """Other settings count from now on; who waits already keeps the patience that it came with."""
        self._settings = settings
        self.routing.balance = balance
        self.dispatch()

    @property
    def ready(self) -> bool:
        return any(replica.ready for replica in self.replicas)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def waiting_of(self, priority: Priority) -> int:
        """How many of a class wait."""
        return self._queue.waiting(priority)

    @property
    def slots(self) -> int:
        """The slots of the largest replica that is ready: what one call can take at most; 0 when none is ready."""
        return max((replica.slots for replica in self.replicas if replica.ready), default=0)

    def largest_context(self) -> int | None:
        """The tokens that fit into the largest slot; None as long as one replica's slots are not known."""
        contexts = [replica.context for replica in self.replicas]
        return None if None in contexts else max((context for context in contexts if context), default=None)

    @property
    def usable(self) -> int:
        """The same as things stand: of a shared replica there may be less for now, or nothing."""
        return max((replica.usable for replica in self.replicas if replica.ready), default=0)

    @property
    def why(self) -> str:
        """Why no replica is ready, for clients: a state, and nothing internal."""
        return self.absent or why_unready(self.name, {replica.state for replica in self.replicas})

    async def lease(self, demand: Demand, *, avoid: Collection[Replica] = ()) -> Lease:
        """Wait for the slots of one replica that the call takes, of ``avoid`` only if no other has them free.

        Raises ContextLengthExceeded, InvalidRequest when no replica has that
        many slots, and QueueFull at once, QueueTimeout or NotReady when patience
        ends. The lease is a context manager; leaving it gives the slots back
        without awaiting.
        """
        now = asyncio.get_running_loop().time()
        if not self._queue and (lease := self._lease_now(demand, avoid, now)) is not None:
            return lease
        return await self._wait(demand, avoid, now)

    def dispatch(self) -> None:
        """Give free slots to whose turn it is, and to the next, while it can."""
        if self._queue:
            now = asyncio.get_running_loop().time()
            while self._queue and self._serve_one(now):
                pass
        if self._asks is not None:
            if not self._queue:
                # The last pass has found somebody, who is served.
                self._asks.begin()
            self._asks.tell()

    def refuse(self, error: CorralError) -> None:
        """Let nobody who waits now wait any longer."""
        now = asyncio.get_running_loop().time()
        for place in self._queue.in_turn(now, self._settings.lift_s):
            if not place.who.granted.done():
                place.who.granted.set_exception(error)
        self.dispatch()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        self.dispatch()

    def told_wait(self, call: Call) -> str:
        """What this call waits for, and its place in the queue; "" when it does not wait."""
        now = asyncio.get_running_loop().time()
        places = self._queue.in_turn(now, self._settings.lift_s)
        place = next((number for number, each in enumerate(places, 1) if each.who.demand.call is call), None)
        if place is None:
            return ""
        where = f"place={place} waiting={len(self._queue)}"
        if self.ready:
            return f"queued {where}"
        return f"loading {where}" + (f" ready_s={max(0, ceil(self.ready_at - now))}" if self.ready_at else "")

    def retry_after_s(self) -> float:
        """When a slot is likely to be free for one who comes back: what waits, served at the measured rate."""
        slots = sum(replica.slots for replica in self.replicas if replica.ready)
        return self._pace.retry_after_s(slots, self.ready_at)

    # Coming.

    def _lease_now(self, demand: Demand, avoid: Collection[Replica], now: float) -> Lease | None:
        if self._closed or self._asks is not None:
            return None
        if len(self.replicas) != 1:
            choice = self.routing.choose(demand, avoid, (), now, self._pace.held_s)
            return self._take(choice.replica, demand, now, choice) if choice.replica else None
        replica = self.replicas[0]
        if replica.free < demand.tasks or not demand.may_fit(replica.context):
            return None
        return self._take(replica, demand, now)

    async def _wait(self, demand: Demand, avoid: Collection[Replica], now: float) -> Lease:
        loop = asyncio.get_running_loop()
        place = self._join(demand, avoid, now)
        patience = loop.call_later(self._patience_s(demand), self._expire, place)
        unready_patience = loop.call_later(self._settings.unready_patience_s, self._expire_if_unready, place)
        try:
            return await place.who.granted
        except BaseException:
            self._give_up(place)
            raise
        finally:
            patience.cancel()
            unready_patience.cancel()

    def _join(self, demand: Demand, avoid: Collection[Replica], now: float) -> Place[Waiter]:
        account = self._queue.account(demand.principal)
        ahead, own = self._ahead(account)
        full = None if demand.returns else crowded(self.name, ahead, own, self._settings, self.retry_after_s)
        waiter = Waiter(demand, avoid, asyncio.get_running_loop().create_future(), may_hold=full is None)
        place = self._queue.join(account, waiter, now, returns=demand.returns)
        self._pace.tasks += demand.tasks
        self.dispatch()
        # Who is served at once does not wait, however short the queue may be.
        if waiter.asked is not None:
            waiter.full = full
        elif not waiter.granted.done() and (error := self._hopeless(demand) or full) is not None:
            self._leave(place)
            self.dispatch()
            raise error
        if not waiter.granted.done() and not self.ready:
            self.on_wanted()
        return place

    def _ahead(self, account: Account[Waiter]) -> tuple[int, int]:
        """How many wait, and how many of one client; whose slots are being asked for does not count."""
        if self._asks is None:
            return len(self._queue), len(account.waiting)
        own = sum(place.who.asked is None for place in account.waiting)
        return len(self._queue) - self._asks.promised, own

    def _patience_s(self, demand: Demand) -> float:
        batch = demand.principal.priority is Priority.BATCH
        return self._settings.batch_patience_s if batch else self._settings.patience_s

    # Being served.

    def _serve_one(self, now: float) -> bool:
        """Grant or refuse what the first asks for who can be told; False when all have to wait."""
        kept: set[Replica] = set()
        if self._asks is not None:
            self._asks.begin()
        for place in self._queue.in_turn(now, self._settings.lift_s):
            waiter = place.who
            if self._settle(waiter, kept, now):
                self._leave(place)
                return True
            if not any(self._worth_a_look(replica) and replica not in kept for replica in self.replicas):
                break
        return False

    def _worth_a_look(self, replica: Replica) -> bool:
        """Who comes later may want it: a shared one that is full too, else its place in line there comes and goes."""
        return replica.free > 0 or (self._asks is not None and replica.shared is not None)

    def _settle(self, waiter: Waiter, kept: set[Replica], now: float) -> bool:
        """Grant or refuse; False when the waiter has to wait, and what it waits for is ``kept``."""
        if waiter.granted.done():
            return True
        if (error := self._hopeless(waiter.demand)) is not None:
            waiter.granted.set_exception(error)
            return True
        choice = self._choose(waiter, kept, now)
        if choice.replica is not None and choice.replica.lets(waiter.demand.tasks):
            waiter.asked = None
            waiter.granted.set_result(self._take(choice.replica, waiter.demand, now, choice))
            return True
        if choice.replica is not None and self._asks is not None:
            waiter.asked = choice
            self._asks.promise(choice.replica, waiter.demand.tasks)
            self._stand(waiter, waiter.stands_beside(choice.replica, self.routing, now), kept)
            return False
        waiter.asked = None
        if waiter.full is not None:
            waiter.granted.set_exception(waiter.full)
            return True
        self._stand(waiter, choice.waits_for, kept)
        return False

    def _stand(self, waiter: Waiter, replicas: Sequence[Replica], kept: set[Replica]) -> None:
        """It waits for these. Those behind it do not, else a call for many slots would wait for ever."""
        if self._asks is not None:
            waiter.stands = [replica for replica in replicas if replica not in kept]
            self._asks.wait(waiter.stands, waiter.demand.tasks)
        kept.update(replicas)

    def _choose(self, waiter: Waiter, kept: Collection[Replica], now: float) -> Choice:
        choice = waiter.choose(self.routing, kept, now, self._pace.held_s)
        if choice.hold_s is not None and waiter.hold is None:
            waiter.hold = asyncio.get_running_loop().call_later(choice.hold_s, self._end_hold, waiter)
            self.routing.decisions[HELD] += 1
        return choice

    def _end_hold(self, waiter: Waiter) -> None:
        waiter.may_hold = False
        self.dispatch()

    def _take(self, replica: Replica, demand: Demand, now: float, choice: Choice | None = None) -> Lease:
        account = self._queue.account(demand.principal)
        lease = Lease(replica, demand, account, self._give_back)
        lease.charged = self._queue.start(account, lease.tasks, now)
        lease.taken_at = now
        lease.trial = replica.breaker.started(now)
        if choice is not None:
            self.routing.taken(lease, choice)
        replica.take(lease)
        return lease

    def _hopeless(self, demand: Demand) -> CorralError | None:
        if self._closed:
            return ShuttingDown("the server is shutting down", retry_after_s=DEFAULT_RETRY_S)
        if self.absent is not None and not self.ready:
            return NotReady(self.absent)
        if self.sleeping and demand.returns and not self.ready:
            # Who unloads a model at once wants its answers to end, not to bring it back.
            return NotReady(f"model '{self.name}' was unloaded")
        if (error := beyond_all(demand, self.replicas)) is not None:
            return error
        if self.replicas and all(replica.state is State.FAILED for replica in self.replicas):
            return NotReady(f"{self.why}; the operator has to look at it")
        return withheld(self.name, demand, self.replicas) if self._asks is not None else None

    # Going.

    def _expire_if_unready(self, place: Place[Waiter]) -> None:
        if not self.ready:
            self._expire(place)

    def _expire(self, place: Place[Waiter]) -> None:
        waiter = place.who
        if not waiter.granted.done():
            unready = None if self.ready else self.why
            patience_s = self._patience_s(waiter.demand)
            waiter.granted.set_exception(impatient(self.name, unready, patience_s, self.retry_after_s()))
            self._leave(place)
            # Those behind it go on at once; their own patience may end in this same moment.
            self.dispatch()

    def _give_up(self, place: Place[Waiter]) -> None:
        """A waiter goes without its lease: its place is gone, and what was granted meanwhile is given back."""
        granted = place.who.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._give_back(granted.result())
        else:
            self._leave(place)
            self.dispatch()

    def _leave(self, place: Place[Waiter]) -> None:
        if self._queue.leave(place):
            self._pace.tasks -= place.who.demand.tasks
        if place.who.hold is not None:
            place.who.hold.cancel()

    def _give_back(self, lease: Lease) -> None:
        now = asyncio.get_running_loop().time()
        self._pace.ended(now - lease.taken_at)
        self._queue.settle(lease.account, lease.charged, lease.tasks, lease.usage)
        if (pause_s := lease.replica.judge(lease, now)) is not None:
            # Who waits may try it then, and nothing else tells them.
            asyncio.get_running_loop().call_later(pause_s + EARLY_S, self.dispatch)
        lease.replica.put_back(lease)
        if lease.foreseen is not None:
            self.routing.learn(lease)
        self.dispatch()


def _nothing() -> None:
    pass
