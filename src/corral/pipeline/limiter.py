"""The limits on each client: they refuse at once, and never make anyone wait."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from corral.config import LimitSettings
from corral.core.call import Call
from corral.core.demand import Demand
from corral.core.errors import LimitsUnavailable
from corral.core.limits import Limit, Rules, Standing, divided, rules_for
from corral.core.meters import Moment
from corral.core.principal import Principal, Quota
from corral.core.record import Record
from corral.core.reserve import complaints, fitted, most_tokens
from corral.core.tally import Book, Share, Tally, Verdict, settle
from corral.pipeline.refusals import limit_headers, refusal, worst_of
from corral.pipeline.reservation import Reservation, Settle

log = logging.getLogger("corral")

Clock = Callable[[], float]
# The tokens that fit into the largest slot of a model; None where it is not known.
ContextOf = Callable[[], int | None]

# Principals change when keys do; those of keys that are gone are forgotten when there are so many.
ACCOUNTS = 4096
# While what several Corrals count together cannot be counted, clients ask again after so long.
AWAY_S = 1.0
# A limit that only reports is told of to the log so often for each client.
TELL_S = 60.0


class Shared(Protocol):
    """Limits that several Corrals count together."""

    async def take(self, rules: Rules, tokens: int) -> tuple[Verdict, Settle | None] | None:
        """Take so many tokens and a request from all limits, or nothing from any; None while nobody can count."""

    def restore(self, account: str, tokens_day: int, tokens_month: int, unix_s: float) -> None:
        """As ``Limiter.restore``."""


@dataclass(frozen=True, slots=True)
class Account:
    """A client at a model: what holds for it, and what that is counted with in this process."""

    principal: Principal
    rules: Rules
    book: Book
    # The same as properties of the rules.
    weighs: bool
    settles: bool


class Limiter:
    """Counts what each account asks for and uses. One writer: itself, synchronously.

    ``count`` is told of every refusal: the limit, and whether it only reports.
    Where limits are ``shared`` it does not count itself, but while that cannot
    be done: then its share of ``share`` equal ones, or, for None, it refuses.
    """

    def __init__(
        self,
        settings: LimitSettings,
        clock: Clock,
        unix_clock: Clock,
        count: Callable[[Limit, bool], None] = lambda _, __: None,
        shared: Shared | None = None,
        share: int | None = None,
    ) -> None:
        self._clock = clock
        self._unix_clock = unix_clock
        self._count = count
        self._shared = shared
        self._share = share
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._accounts: dict[tuple[int, str], Account] = {}
        # When a limit that only reports was told of, and how often it would have refused since.
        self._told: dict[tuple[str, Limit, str], tuple[float, int]] = {}
        self.change(settings)

    def change(self, settings: LimitSettings) -> None:
        """Go by these settings from now on; what has been counted stays counted."""
        self._settings = settings
        self._default = Quota(**{limit.value: getattr(settings, limit.value) for limit in Limit})
        self._shadow = frozenset(Limit(name) for name in settings.shadow)
        self._accounts.clear()
        for tally in self._tallies.values():
            tally.change_window(settings.window_s)

    async def admit(
        self, principal: Principal, call: Call, model: str, record: Record, context_of: ContextOf
    ) -> Reservation:
        """Reserve what the call may take of all limits, or raise RateLimited (or a 400) and take nothing.

        What it has taken is counted when the reservation is left, from the
        record's usage.
        """
        account = self._account(principal, model)
        tokens = 0
        if account.weighs:
            call, tokens = self._weighed(account, call, record.bytes_in, context_of())
        if self._shared is None:
            rules = account.rules
            verdict, settling = self._take(account.book, tokens)
        else:
            rules, verdict, settling = await self._take_shared(account, tokens, self._shared)
        if verdict.refused or verdict.shadowed:
            self._report(rules, verdict, tokens)
        return Reservation(call, limit_headers(verdict.standings), record, settling, settles=account.settles)

    def restore(self, account: str, tokens_day: int, tokens_month: int, unix_s: float) -> None:
        """So much at least has the account used in the day and month (UTC) of this time.

        It only ever raises what is counted, and nothing of a later day or month.
        """
        tally = self._tally(account, "")
        tally.day.restore(tokens_day, unix_s)
        tally.month.restore(tokens_month, unix_s)
        if self._shared is not None:
            self._shared.restore(account, tokens_day, tokens_month, unix_s)

    def _take(self, book: Book, tokens: int) -> tuple[Verdict, Settle | None]:
        verdict, shares = book.take(tokens, Moment(self._clock(), self._unix_clock()))
        return verdict, partial(self._settle, shares) if shares else None

    async def _take_shared(self, account: Account, tokens: int, shared: Shared) -> tuple[Rules, Verdict, Settle | None]:
        if not account.rules.scopes:
            return account.rules, Verdict(()), None
        taken = await shared.take(account.rules, tokens)
        if taken is not None:
            return account.rules, *taken
        if self._share is None:
            if not account.rules.refuse:
                return account.rules, Verdict(()), None
            raise LimitsUnavailable("the limits cannot be counted at this moment; try again", retry_after_s=AWAY_S)
        return account.book.rules, *self._take(account.book, tokens)

    def _settle(self, shares: list[Share], used_tokens: int, ran: bool) -> None:
        settle(shares, used_tokens, Moment(self._clock(), self._unix_clock()), ran=ran)

    def _account(self, principal: Principal, model: str) -> Account:
        known = self._accounts.get((id(principal), model))
        # It holds the principal, so that no other one has its id.
        return known if known is not None else self._new_account(principal, model)

    def _new_account(self, principal: Principal, model: str) -> Account:
        rules = rules_for(principal, model, self._default, self._settings.window_s, self._shadow)
        own = rules if self._share is None else divided(rules, self._share)
        book = Book(own, [self._tally(rules.account, scope.model) for scope in own.scopes])
        if len(self._accounts) >= ACCOUNTS:
            self._accounts.clear()
        account = self._accounts[id(principal), model] = Account(principal, rules, book, rules.weigh, rules.settle)
        return account

    def _tally(self, account: str, model: str) -> Tally:
        tally = self._tallies.get((account, model))
        if tally is None:
            tally = self._tallies[account, model] = Tally(self._settings.window_s)
        return tally

    def _weighed(self, account: Account, call: Call, body_bytes: int, context: int | None) -> tuple[Call, int]:
        """The call as its limits let it pass, and the tokens that it may take at most."""
        rules, demand = account.rules, Demand(call, account.principal, body_bytes)
        for limit, error in complaints(call, rules, demand).items():
            if limit not in rules.shadow:
                self._count(limit, False)
                raise error
            self._tell(rules, Standing(limit, "", getattr(rules, limit.value), 0, 0.0))
        call = fitted(call, rules, demand, context)
        return call, most_tokens(call, body_bytes, context)

    def _report(self, rules: Rules, verdict: Verdict, tokens: int) -> None:
        """Raise the error of a limit that has refused; tell of those that only report."""
        if verdict.refused:
            self._count(worst_of(verdict).limit, False)
            raise refusal(rules, verdict, tokens)
        for standing in verdict.shadowed:
            self._tell(rules, standing)

    def _tell(self, rules: Rules, standing: Standing) -> None:
        self._count(standing.limit, True)
        of, now = (rules.account, standing.limit, standing.model), self._clock()
        told_at, times = self._told.get(of, (float("-inf"), 0))
        if now - told_at < TELL_S:
            self._told[of] = (told_at, times + 1)
            return
        fields = {"client": rules.client, "limit": standing.limit.value, "value": standing.value, "times": times + 1}
        if standing.model:
            fields["model"] = standing.model
        log.warning("limit would refuse", extra={"fields": fields})
        self._told[of] = (now, 0)
