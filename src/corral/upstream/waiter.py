"""A call in the queue of a model, and the replica that it is to have."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from corral.core.demand import Demand
from corral.core.errors import CorralError
from corral.upstream.lease import Lease
from corral.upstream.replica import Replica
from corral.upstream.routing import Choice, Routing


@dataclass(slots=True, eq=False)
class Waiter:
    """Written by the pool."""

    demand: Demand
    avoid: Collection[Replica]
    granted: asyncio.Future[Lease]
    # It may wait for a replica that has its prompt while others are free, until the timer says no.
    may_hold: bool
    hold: asyncio.TimerHandle | None = None
    # The shared replica that it will be leased, if it has the slots that it is being asked for.
    asked: Choice | None = None
    # The replicas in whose lines it stands, the first of this Corral's: it keeps its place while another one is asked.
    stands: Sequence[Replica] = ()
    # It has been let in for free slots alone: should there be none after all, it is refused with this.
    full: CorralError | None = None

    def choose(self, routing: Routing, kept: Collection[Replica], now: float, held_s: float) -> Choice:
        """The best replica for it that is not ``kept`` for others; ``held_s`` as for ``Routing.choose``."""
        if self.stands and (choice := self._choose_granted(routing, kept, now)).replica is not None:
            return choice
        if self.asked is not None and self._is_open(self.asked.replica, routing, kept, now):
            # Each answer of a replica lets all be chosen for again: who changes its mind would go on asking.
            return self.asked
        return routing.choose(self.demand, self.avoid, kept, now, held_s if self.may_hold else None)

    def stands_beside(self, replica: Replica, routing: Routing, now: float) -> list[Replica]:
        """The lines that it stays in while this one is asked."""
        able = routing.able(self.demand, now)
        return [each for each in self.stands if each is not replica and each in able]

    def _choose_granted(self, routing: Routing, kept: Collection[Replica], now: float) -> Choice:
        """Of the replicas in whose lines it stands, one that has let it in."""
        tasks = self.demand.tasks
        granted = [each for each in self.stands if each.free >= tasks and each.lets(tasks)]
        others = {*kept, *(replica for replica in routing.replicas if replica not in granted)}
        return routing.choose(self.demand, self.avoid, others, now, None)

    def _is_open(self, replica: Replica | None, routing: Routing, kept: Collection[Replica], now: float) -> bool:
        """The replica can still take it."""
        if replica is None or replica in kept or replica.free < self.demand.tasks:
            return False
        return replica in routing.able(self.demand, now)
