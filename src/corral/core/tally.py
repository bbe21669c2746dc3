"""Counting in one process: all limits of a request are asked before any is taken from."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from corral.core.calendar import day_of, month_of
from corral.core.limits import Limit, Rules, Standing
from corral.core.meters import Budget, InFlight, Meter, Moment, RequestWindow, TokenWindow


class Tally:
    """What one account has used, altogether or at one model. One writer: itself, through its books."""

    __slots__ = ("day", "meters", "month", "requests", "tokens")

    def __init__(self, window_s: float) -> None:
        self.requests = RequestWindow(window_s)
        self.tokens = TokenWindow(window_s)
        self.day = Budget(day_of)
        self.month = Budget(month_of)
        self.meters: dict[Limit, Meter] = {
            Limit.REQUESTS: self.requests,
            Limit.TOKENS: self.tokens,
            Limit.IN_FLIGHT: InFlight(),
            Limit.TOKENS_DAY: self.day,
            Limit.TOKENS_MONTH: self.month,
        }

    def change_window(self, window_s: float) -> None:
        """What is taken from now on stays for so long."""
        self.requests.window_s = self.tokens.window_s = window_s


class Share(NamedTuple):
    """What was taken from one meter."""

    meter: Meter
    weighs: bool
    mark: float
    amount: int


class Verdict(NamedTuple):
    """What the limits said to one request. ``refused``: those that said no; ``shadowed``: those that would have."""

    standings: Sequence[Standing]
    refused: Sequence[Standing] = ()
    shadowed: Sequence[Standing] = ()


class Line(NamedTuple):
    meter: Meter
    limit: Limit
    model: str
    value: int
    weighs: bool
    shadow: bool


class Book:
    """The limits of one client at one model with what they count with. Writes nothing but through the meters."""

    __slots__ = ("_lines", "rules")

    def __init__(self, rules: Rules, tallies: Iterable[Tally]) -> None:
        """``tallies`` are those of the rules' scopes, in their order."""
        self.rules = rules
        self._lines = tuple(
            Line(tally.meters[limit], limit, scope.model, value, limit.weighs, limit in rules.shadow)
            for scope, tally in zip(rules.scopes, tallies, strict=True)
            for limit, value in scope.counted
        )

    def take(self, tokens: int, at: Moment) -> tuple[Verdict, list[Share]]:
        """Take one request of at most so many tokens from all limits, or nothing from any.

        A limit that only reports, and would say no, has nothing taken from it:
        it counts what it would have let through.
        """
        for meter, _, _, value, weighs, _ in self._lines:
            if meter.wait_s(tokens if weighs else 1, value, at) is not None:
                return self._judge(tokens, at)
        # Most requests come here.
        return _take_all(self._lines, tokens, at)

    def _judge(self, tokens: int, at: Moment) -> tuple[Verdict, list[Share]]:
        refused: list[Standing] = []
        shadowed: list[Standing] = []
        free: list[Line] = []
        for line in self._lines:
            wait_s = line.meter.wait_s(tokens if line.weighs else 1, line.value, at)
            if wait_s is None:
                free.append(line)
            else:
                (shadowed if line.shadow else refused).append(_standing(line, at, wait_s))
        if refused:
            return Verdict([*refused, *(_standing(line, at) for line in free if not line.shadow)], refused), []
        verdict, shares = _take_all(free, tokens, at)
        return verdict._replace(shadowed=shadowed), shares


def settle(shares: Iterable[Share], used_tokens: int, at: Moment, *, ran: bool = True) -> None:
    """Count what was used in place of what was reserved; a request that never ran has used nothing. To be done once."""
    for meter, weighs, mark, amount in shares:
        meter.settle(mark, amount, used_tokens if weighs else int(ran), at)


def _take_all(lines: Iterable[Line], tokens: int, at: Moment) -> tuple[Verdict, list[Share]]:
    shares = []
    standings = []
    for meter, limit, model, value, weighs, shadow in lines:
        amount = tokens if weighs else 1
        shares.append(Share(meter, weighs, meter.take(amount, at), amount))
        if not shadow:
            standings.append(Standing(limit, model, value, meter.left(value), meter.reset_s(at)))
    return Verdict(standings), shares


def _standing(line: Line, at: Moment, wait_s: float | None = None) -> Standing:
    meter, limit, model, value, _, _ = line
    return Standing(limit, model, value, meter.left(value), meter.reset_s(at), wait_s)
