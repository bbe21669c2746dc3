"""How much may be asked for: which limits hold for a client at a model, and how each of them stands."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import NamedTuple

from corral.core.principal import UNSAID, Principal, Quota

# When a request that ends may make room at any moment, nobody knows when: a client asks again after so long.
HINT_S = 1.0
# A reservation that is larger than its limit is not admitted however long one waits.
NEVER_S = float("inf")


class Limit(Enum):
    """The limits; the value is the name in settings, messages and metrics."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    IN_FLIGHT = "in_flight"
    TOKENS_DAY = "tokens_day"
    TOKENS_MONTH = "tokens_month"
    MAX_TOKENS = "max_tokens"
    MAX_CONTEXT = "max_context"

    # A member is one object; Enum's own hash is written in Python.
    __hash__ = object.__hash__

    @property
    def weighs(self) -> bool:
        """It counts tokens, not requests."""
        return self in (Limit.TOKENS, Limit.TOKENS_DAY, Limit.TOKENS_MONTH)


# Those that something is taken from and given back to. The others only look at the request.
COUNTED = (Limit.REQUESTS, Limit.TOKENS, Limit.IN_FLIGHT, Limit.TOKENS_DAY, Limit.TOKENS_MONTH)
BUDGETS = (Limit.TOKENS_DAY, Limit.TOKENS_MONTH)


@dataclass(frozen=True, slots=True)
class Scope:
    """What is counted together: all requests of an account, or those for one model; ``model`` is "" for all."""

    model: str
    # The limits in force with their values, in COUNTED's order. A value of 0 (a share of a small limit) admits nothing.
    counted: tuple[tuple[Limit, int], ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of one client at one model."""

    client: str
    account: str
    scopes: tuple[Scope, ...] = ()
    window_s: float = 60.0
    # 0 is no limit.
    max_tokens: int = 0
    max_context: int = 0
    # Those that only report.
    shadow: frozenset[Limit] = frozenset()
    # They are a share, and the whole will be there again.
    divided: bool = False

    @property
    def weigh(self) -> bool:
        """A request has to be measured in tokens before they can say yes."""
        counted = any(limit.weighs for scope in self.scopes for limit, _ in scope.counted)
        return counted or bool(self.max_tokens or self.max_context)

    @property
    def refuse(self) -> bool:
        """They do more than report."""
        return any(limit not in self.shadow for scope in self.scopes for limit, _ in scope.counted)

    @property
    def settle(self) -> bool:
        """What they take has to be settled also when all went well."""
        return any(limit is not Limit.REQUESTS for scope in self.scopes for limit, _ in scope.counted)

    @property
    def least_tokens(self) -> int | None:
        """The smallest limit on tokens: what asks for more at once is never admitted."""
        values = [value for scope in self.scopes for limit, value in scope.counted if limit.weighs]
        return min(values, default=None)


class Standing(NamedTuple):
    """How one limit stands after it was asked; ``model`` is "" where it counts all models together.

    ``reset_s``: until nothing of it is used any more. ``wait_s``: None when it
    admitted the request, else until it is worth asking again, or NEVER_S.
    """

    limit: Limit
    model: str
    value: int
    left: int
    reset_s: float
    wait_s: float | None = None


def rules_for(
    principal: Principal, model: str, default: Quota, window_s: float = 60.0, shadow: frozenset[Limit] = frozenset()
) -> Rules:
    """What holds for the client at this model: what its key says, or the default; and what it says of the model."""
    own = _first_said((principal.quota, default))
    here = _first_said(quota for pattern, quota in principal.model_quotas if fnmatchcase(model, pattern))
    scopes = (Scope("", _counted(own)), Scope(model, _counted(here)))
    return Rules(
        principal.client,
        principal.account,
        tuple(scope for scope in scopes if scope.counted),
        window_s=window_s,
        max_tokens=_stricter(own.max_tokens, here.max_tokens),
        max_context=_stricter(own.max_context, here.max_context),
        shadow=shadow,
    )


def divided(rules: Rules, by: int) -> Rules:
    """A share of what is counted, where ``by`` Corrals cannot count together; rounded down, to nothing if need be."""
    scopes = (
        replace(scope, counted=tuple((limit, value // by) for limit, value in scope.counted)) for scope in rules.scopes
    )
    return replace(rules, scopes=tuple(scopes), divided=True)


def _first_said(quotas: Iterable[Quota]) -> Quota:
    """Field by field, what the first says that says anything."""
    result = UNSAID
    for quota in quotas:
        unsaid = {limit.value: getattr(quota, limit.value) for limit in Limit if getattr(result, limit.value) is None}
        result = replace(result, **unsaid)
    return result


def _counted(quota: Quota) -> tuple[tuple[Limit, int], ...]:
    return tuple((limit, value) for limit in COUNTED if (value := getattr(quota, limit.value)))


def _stricter(one: int | None, other: int | None) -> int:
    return min((value for value in (one, other) if value), default=0)
