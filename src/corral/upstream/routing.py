"""Which of a model's replicas takes a call, and what is learned from the calls that end."""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from corral.core.balance import Balance, Candidate, choose, hold_s
from corral.core.demand import Demand
from corral.core.prefix import BLOCK_BYTES
from corral.upstream.lease import Lease
from corral.upstream.replica import Replica

# The weight of the newest call in the speed of reading prompts, and how much it has to have read to say something.
SPEED_SMOOTHING = 0.2
SPEED_BYTES = 1024
# llama-server counts tokens, we count bytes: what it had in its cache is less than foreseen only if it is clearly less.
CLEARLY_LESS = 0.75

# Why a replica was chosen, beside the name of the balance: no other was able; the prompt's start is in its cache; it
# is in no cache. And that a call has begun to wait for a busy replica because of its cache.
ONLY = "only"
CACHED = "cached"
UNCACHED = "uncached"
HELD = "held"


class Choice(NamedTuple):
    """The replica to take; or None, with those that a slot is waited for, and how long at most (None: patience)."""

    replica: Replica | None
    waits_for: Sequence[Replica] = ()
    hold_s: float | None = None
    reason: str = ""
    # The blocks of the prompt that the replica has; None when nobody looked.
    matched: int | None = None


class Routing:
    """Chooses among several replicas, and knows how fast they read. One writer: the pool."""

    def __init__(self, replicas: Sequence[Replica], balance: Balance) -> None:
        self.replicas = replicas
        self.balance = balance
        self._turn = 0.0
        self._draw = random.random
        # Bytes of a prompt in a second; 0 as long as nothing has been measured.
        self._read_per_s = 0.0
        # How often each reason decided.
        self.decisions: Counter[str] = Counter()

    def choose(
        self, demand: Demand, avoid: Collection[Replica], kept: Collection[Replica], now: float, held_s: float | None
    ) -> Choice:
        """The best replica that has room and is not ``kept`` for others; one of ``avoid`` only if there is no other.

        ``held_s`` is how long a lease is held on average; None: the call does not wait for a better one.
        """
        able = [replica for replica in self.able(demand, now) if replica not in kept]
        free = [replica for replica in able if replica.free >= demand.tasks]
        free = [replica for replica in free if replica not in avoid] or free
        if not free:
            return Choice(None, able)
        matched = self._matched(demand, able)
        best = free[0] if len(free) == 1 else self._best(demand, free, matched)
        if matched is None:
            # Without a prompt to compare there is nothing but the load to go by.
            balance = Balance.LEAST_BUSY if self.balance is Balance.PREFIX else self.balance
            return Choice(best, reason=ONLY if len(able) == 1 else balance.value)
        if held_s is not None and (hold := self._hold(best, able, avoid, matched, held_s)) is not None:
            return hold
        reason = ONLY if len(able) == 1 else CACHED if matched[best] else UNCACHED
        return Choice(best, reason=reason, matched=matched[best])

    def able(self, demand: Demand, now: float) -> list[Replica]:
        """The replicas that may take the call, now or when they have room."""
        able = [
            replica
            for replica in self.replicas
            if replica.ready and replica.usable >= demand.tasks and demand.may_fit(replica.context)
        ]
        if not all(replica.breaker.closed for replica in able):
            able = [replica for replica in able if replica.breaker.lets(now)] or able
        if likely := [replica for replica in able if demand.likely_fits(replica.context)]:
            return likely
        largest = max((replica.context or 0 for replica in able), default=0)
        return [replica for replica in able if replica.context == largest]

    def taken(self, lease: Lease, choice: Choice) -> None:
        """A call goes where it was chosen to go."""
        if len(self.replicas) == 1:
            return
        replica = lease.replica
        # One that was away does not make up for it.
        self._turn = max(self._turn, replica.turn)
        replica.turn = self._turn + 1.0 / replica.weight
        lease.reason = choice.reason
        if choice.matched is not None:
            lease.foreseen = (choice.matched, replica.prefixes.now)
        self.decisions[choice.reason] += 1

    def learn(self, lease: Lease) -> None:
        """A call whose prompt was compared has ended."""
        usage, demand = lease.usage, lease.demand
        if lease.foreseen is None or lease.prefill_s is None or not usage.prompt_tokens:
            return
        if demand.body_bytes < BLOCK_BYTES:
            return
        prompt = demand.prompt
        cached = usage.cached_tokens / usage.prompt_tokens
        matched, then = lease.foreseen
        blocks = int(cached * prompt.size_bytes) // BLOCK_BYTES
        if blocks < matched * CLEARLY_LESS:
            lease.replica.prefixes.correct(prompt.chain[blocks:matched], then)
        lease.replica.prefixes.learn(prompt)
        self._measure((1.0 - cached) * prompt.size_bytes, lease.prefill_s)

    def _matched(self, demand: Demand, able: Sequence[Replica]) -> dict[Replica, int] | None:
        # A prompt is looked at only where that can change something.
        if self.balance is not Balance.PREFIX or len(self.replicas) == 1 or not demand.compared:
            return None
        if demand.body_bytes < BLOCK_BYTES:
            # It has no whole block.
            return dict.fromkeys(able, 0)
        return {replica: replica.prefixes.matched(demand.prompt) for replica in able}

    def _best(self, demand: Demand, free: Sequence[Replica], matched: dict[Replica, int] | None) -> Replica:
        size = demand.prompt.size_bytes if matched and any(matched.values()) else demand.body_bytes
        candidates = []
        for replica in free:
            # Other Corrals' calls are a load too, and so are those that are about to go there.
            busy = replica.busy + replica.elsewhere + replica.promised
            candidates.append(
                Candidate(
                    name=replica.name,
                    busy=busy,
                    load=(busy + demand.tasks) / replica.slots,
                    turn=replica.turn + replica.promised / replica.weight,
                    weight=replica.weight,
                    uncached=size - matched[replica] * BLOCK_BYTES if matched else 0.0,
                    lot=self._draw(),
                )
            )
        return free[choose(self.balance, candidates, demand.sticky_key)]

    def _hold(
        self,
        best: Replica,
        able: Sequence[Replica],
        avoid: Collection[Replica],
        matched: dict[Replica, int],
        held_s: float,
    ) -> Choice | None:
        """Wait for a busy replica that has more of the prompt, if that is worth it."""
        busy = [replica for replica in able if not replica.free and replica not in avoid]
        better = max(busy, key=matched.__getitem__, default=best)
        saved = (matched[better] - matched[best]) * BLOCK_BYTES
        wait_s = hold_s(saved, self._read_per_s, held_s, better.slots) if saved > 0 else 0.0
        return Choice(None, (better,), hold_s=wait_s) if wait_s else None

    def _measure(self, read_bytes: float, took_s: float) -> None:
        if read_bytes < SPEED_BYTES or took_s <= 0:
            return
        speed = read_bytes / took_s
        self._read_per_s += (speed - self._read_per_s) * (SPEED_SMOOTHING if self._read_per_s else 1.0)
