"""The limits, counted by several Corrals together."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from corral.core.calendar import day_of, month_of
from corral.core.limits import COUNTED, NEVER_S, Rules, Scope, Standing
from corral.core.tally import Verdict
from corral.valkey.link import Link
from corral.valkey.lost import ValkeyLost
from corral.valkey.script import Script

LIMITS = Script((Path(__file__).parent / "limits.lua").read_text(encoding="utf-8"))

US = 1_000_000
# Four numbers for each limit.
NUMBERS = 4
YES, NO, WOULD_SAY_NO = 1, 2, 3
# It was given back before it came.
VOID = b"void"
# There is nothing to settle; or, for a time, that the server has its own.
NOTHING = "-"
# The structures of a scope, in the script's order.
OF_SCOPE = ("requests", "tokens", "amounts", "in_flight", "budgets")
# As many reservations are refreshed by one run of the script.
REFRESHED = 100
# How often what is held is refreshed in the time in which it would be freed.
REFRESHES = 3

Settle = Callable[[int, bool], None]


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation of ours that is open, as the script knows it."""

    id: str
    keys: tuple[str, ...]
    window_us: int
    record: str


class SharedLimits:
    """Takes from the limits in Valkey, and settles. One writer of what is held: itself, synchronously.

    What is in Valkey is written by its one script (limits.lua). A reservation
    that is not refreshed by the Corral that holds it is freed there.
    """

    def __init__(
        self,
        link: Link,
        lease_s: float,
        prefix: str,
        new_id: Callable[[], str],
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        """``clock_us`` stands for the server's own clock."""
        self._prefix = prefix
        self._lease_s = lease_s
        self._new_id = new_id
        self._clock_us = clock_us
        self._held: dict[str, Held] = {}
        self._link = link
        link.on_back(self._refresh)

    async def take(self, rules: Rules, tokens: int) -> tuple[Verdict, Settle | None] | None:
        """Take one request of at most so many tokens from all limits, or nothing from any; None while Valkey is away.

        The function settles it: it does not await, and is to be called once. It
        is None where nothing was taken.
        """
        id, keys = self._new_id(), _keys(self._prefix, rules.account, rules.scopes)
        window_us = round(rules.window_s * US)
        settle = partial(self._settle, id, keys, window_us)
        try:
            words = self._words("take", id, window_us, tokens, *_limits(rules))
            answer = await self._link.ask(LIMITS, keys, (words,))
        except ValkeyLost as lost:
            if lost.sent:
                settle(0, False, void=True)
            return None
        except asyncio.CancelledError:
            # It may be on its way.
            settle(0, False, void=True)
            raise
        if answer == VOID:
            return None
        record, *numbers = answer.decode().split(" ")
        verdict = _verdict(rules, [int(number) for number in numbers])
        if verdict.refused:
            return verdict, None
        if record != NOTHING:
            self._held[id] = Held(id, keys, window_us, record)
        return verdict, settle

    def restore(self, account: str, tokens_day: int, tokens_month: int, unix_s: float) -> None:
        """So much at least has the account used in the day and month of this time; it only ever raises the counts."""
        keys = _keys(self._prefix, account, (Scope("", ()),))
        periods = (day_of(unix_s).number, tokens_day, month_of(unix_s).number, tokens_month)
        self._link.tell(LIMITS, keys, (f"restore {self._now()} {' '.join(map(str, periods))}",))

    async def run(self) -> None:
        """Keep what is held; until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / REFRESHES)
            if not self._link.away:
                self._refresh()
                # Nobody is to be the first to find out that it is gone, or has been.
                self._link.look()

    @property
    def away(self) -> bool:
        """Nothing can be counted now."""
        return self._link.away

    @property
    def lost(self) -> int:
        """How many settlements could not be kept until Valkey was back."""
        return self._link.lost

    def _settle(
        self, id: str, keys: tuple[str, ...], window_us: int, used_tokens: int, ran: bool, *, void: bool = False
    ) -> None:
        self._held.pop(id, None)
        words = self._words("settle", id, window_us, used_tokens, int(ran), int(void))
        self._link.tell(LIMITS, keys, (words,))

    def _refresh(self) -> None:
        """Tell of all that is open."""
        groups: dict[tuple[tuple[str, ...], int], list[Held]] = {}
        for held in self._held.values():
            groups.setdefault((held.keys, held.window_us), []).append(held)
        for (keys, window_us), members in groups.items():
            for start in range(0, len(members), REFRESHED):
                pairs = [word for held in members[start : start + REFRESHED] for word in (held.id, held.record)]
                words = " ".join(("refresh", self._now(), str(window_us), str(self._lease_us), *pairs))
                self._link.tell(LIMITS, keys, (words,))

    @property
    def _lease_us(self) -> int:
        return round(self._lease_s * US)

    def _now(self) -> str:
        return NOTHING if self._clock_us is None else str(self._clock_us())

    def _words(self, what: str, id: str, window_us: int, *more: int) -> str:
        return " ".join((what, self._now(), id, str(window_us), str(self._lease_us), *map(str, more)))


def _keys(prefix: str, account: str, scopes: Iterable[Scope]) -> tuple[str, ...]:
    """All keys of an account are in one slot of a cluster, by the part in braces."""
    own = f"{prefix}:limits:{{{account}}}"
    return (
        f"{own}:leases",
        f"{own}:open",
        *(f"{own}:{name}:{scope.model}" for scope in scopes for name in OF_SCOPE),
    )


def _limits(rules: Rules) -> Iterable[int]:
    """For each scope the value of each limit, -1 where there is none, and the bits of those that only report."""
    shadow = sum(1 << place for place, limit in enumerate(COUNTED) if limit in rules.shadow)
    for scope in rules.scopes:
        values = dict(scope.counted)
        yield from (values.get(limit, -1) for limit in COUNTED)
        yield shadow


def _verdict(rules: Rules, numbers: Sequence[int]) -> Verdict:
    standings: list[Standing] = []
    shadowed: list[Standing] = []
    at = 0
    for scope in rules.scopes:
        for limit, value in scope.counted:
            state, left, reset_us, wait_us = numbers[at : at + NUMBERS]
            at += NUMBERS
            wait_s = None if state == YES else _wait_s(wait_us)
            standing = Standing(limit, scope.model, value, left, reset_us / US, wait_s)
            if state == WOULD_SAY_NO:
                shadowed.append(standing)
            elif limit not in rules.shadow:
                standings.append(standing)
    refused = [standing for standing in standings if standing.wait_s is not None]
    return Verdict(standings, refused, () if refused else shadowed)


def _wait_s(wait_us: int) -> float:
    return NEVER_S if wait_us < 0 else max(wait_us / US, 1 / US)
