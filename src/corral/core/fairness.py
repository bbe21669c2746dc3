"""Who is next in the queue of one model.

Classes first: as long as somebody of a higher class waits, nobody of a lower
one is served, but for a client that has been passed over for too long.
Within a class it is the turn of the client that has been served least (VTC:
Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). What a
call takes is counted in tokens over the client's weight, the prompt as far as
it was not cached once and the output twice: an estimate when the call starts,
the truth when it ends.

Two clients of one class and weight that both have calls waiting all the time
are never served further apart than ``slots + 1`` calls: a client's call starts
only when no other has got less, and what its running calls turn out to take
more or less than estimated is at most a call for each slot.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from corral.core.principal import Principal, Priority
from corral.core.usage import Usage

# What a token of output takes beside one of input, which is read many at a time (VTC's own choice).
OUTPUT_WEIGHT = 2.0
# What a task is taken to cost as long as none has ended: a short question with a short answer.
FIRST_COST = 256.0
# The weight of the newest task in the mean cost of a client's.
COST_SMOOTHING = 0.2
# What a client was served so long ago is nothing to those who wait now: their patience began much later.
FORGET_S = 3600.0
# From so many accounts of a class on it is looked whose are that old, and again whenever there are twice as many.
SWEEP_ACCOUNTS = 100

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Account(Generic[T]):
    """What a client of a class has been served, and who waits for it. Written by its queue."""

    client: str
    priority: Priority
    weight: float
    # Tokens over the weight; only differences of a class mean something.
    served: float
    # What one of its tasks costs on average.
    task_cost: float
    # When a call of its was last started, in seconds of the clock that ``now`` is read from.
    started_at: float = float("-inf")
    waiting: "deque[Place[T]]" = field(default_factory=deque)

    @property
    def unserved_since(self) -> float:
        """Since when it waits without any call of its being started."""
        return max(self.started_at, self.waiting[0].joined_at)


@dataclass(frozen=True, slots=True, eq=False)
class Place(Generic[T]):
    """A place in the queue, and who stands there."""

    account: Account[T]
    joined_at: float
    who: T


class Band(Generic[T]):
    """The accounts of one class. Written by its queue."""

    __slots__ = ("_sweep_at", "accounts", "start", "waiting")

    def __init__(self) -> None:
        self.accounts: dict[str, Account[T]] = {}
        # Those of the accounts that have somebody waiting.
        self.waiting: dict[str, Account[T]] = {}
        # What the one that was served furthest had got when its call started; where newcomers begin.
        self.start = 0.0
        self._sweep_at = SWEEP_ACCOUNTS

    def by_turn(self) -> list[Account[T]]:
        return sorted(self.waiting.values(), key=_turn)

    def floor(self) -> float:
        """What a client that comes back begins with, so that it has saved up nothing by being away."""
        return min((self.start, *(account.served for account in self.waiting.values())))

    def forget(self, before: float) -> None:
        """Forget clients of which nobody waits and nothing was started since then."""
        if len(self.accounts) < self._sweep_at:
            return
        self.accounts = {
            client: account
            for client, account in self.accounts.items()
            if account.waiting or account.started_at >= before
        }
        self._sweep_at = max(SWEEP_ACCOUNTS, 2 * len(self.accounts))


class FairQueue(Generic[T]):
    """Those who wait, and what the clients have been served. One writer: the pool."""

    def __init__(self) -> None:
        self._bands: tuple[Band[T], ...] = tuple(Band() for _ in Priority)
        self._waiting = 0
        # Those who had been served already and have to be served again: they go before everybody.
        self._returned: deque[Place[T]] = deque()
        self._lifted = False
        self._task_cost = FIRST_COST

    def __len__(self) -> int:
        return self._waiting

    def waiting(self, priority: Priority) -> int:
        back = sum(place.account.priority is priority for place in self._returned)
        return back + sum(len(account.waiting) for account in self._bands[priority].waiting.values())

    def account(self, principal: Principal) -> Account[T]:
        """The account of a client whose call has come, brought up to date."""
        band = self._bands[principal.priority]
        account = band.accounts.get(principal.client)
        if account is None:
            account = Account(principal.client, principal.priority, principal.weight, band.floor(), self._task_cost)
            band.accounts[principal.client] = account
            return account
        # The settings may give it another than it had.
        account.weight = principal.weight
        if not account.waiting and account.served < band.start:
            # The floor is never above the start: most are above both and need not look for it.
            account.served = max(account.served, band.floor())
        return account

    def join(self, account: Account[T], who: T, now: float, *, returns: bool = False) -> Place[T]:
        """Stand behind the others of the same client; or, for one who comes back, before everybody else."""
        place = Place(account, now, who)
        if returns:
            self._returned.append(place)
            self._waiting += 1
            return place
        account.waiting.append(place)
        self._bands[account.priority].waiting[account.client] = account
        self._waiting += 1
        return place

    def leave(self, place: Place[T]) -> bool:
        """Go, served or not; False when it has gone already."""
        account = place.account
        if place in self._returned:
            self._returned.remove(place)
            self._waiting -= 1
            return True
        if place not in account.waiting:
            return False
        account.waiting.remove(place)
        self._waiting -= 1
        if not account.waiting:
            del self._bands[account.priority].waiting[account.client]
        return True

    def in_turn(self, now: float, lift_s: float) -> Iterator[Place[T]]:
        """Everyone, the next one first; the queue must not change meanwhile. The number of a place is its position.

        A client of which nothing was started for ``lift_s`` goes before the
        higher classes, but not twice in a row, lest many such take all.
        """
        yield from self._returned
        lifted = None if self._lifted else self._passed_over(now - lift_s)
        if lifted is not None:
            yield from lifted.waiting
        for band in self._bands:
            # Most bands are empty, and most others hold one client.
            for account in band.by_turn() if len(band.waiting) > 1 else band.waiting.values():
                if account is not lifted:
                    yield from account.waiting

    def start(self, account: Account[T], tasks: int, now: float) -> float:
        """A call of this client starts; what it is charged until it is settled."""
        band = self._bands[account.priority]
        if account.served > band.start:
            band.start = account.served
        # It was put before somebody of a higher class, who is next then.
        self._lifted = bool(self._waiting) and any(each.waiting for each in self._bands[: account.priority])
        charged = account.task_cost * tasks / account.weight
        account.served += charged
        account.started_at = now
        band.forget(now - FORGET_S)
        return charged

    def settle(self, account: Account[T], charged: float, tasks: int, usage: Usage) -> None:
        """A call has ended and taken this much: nothing at all if it never ran."""
        cost = cost_of(usage)
        account.served += cost / account.weight - charged
        if cost:
            account.task_cost += (cost / tasks - account.task_cost) * COST_SMOOTHING
            self._task_cost += (cost / tasks - self._task_cost) * COST_SMOOTHING

    def _passed_over(self, since: float) -> Account[T] | None:
        """The client that has waited longest of those that higher classes have kept from being served since then."""
        higher = False
        found: list[Account[T]] = []
        for band in self._bands:
            if higher:
                found += (each for each in band.waiting.values() if each.unserved_since <= since)
            higher = higher or bool(band.waiting)
        return min(found, key=lambda each: each.unserved_since, default=None)


def cost_of(usage: Usage) -> float:
    """What was used, in tokens of input."""
    return max(0, usage.prompt_tokens - usage.cached_tokens) + OUTPUT_WEIGHT * usage.completion_tokens


def _turn(account: Account[T]) -> tuple[float, float, float]:
    """Who has been served least; among equals who was served longest ago, then who came first."""
    return account.served, account.started_at, account.waiting[0].joined_at
