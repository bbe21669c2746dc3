"""What a client is told of its limits: headers, and the error of one that refused."""

from collections.abc import Iterable, Sequence

from corral.core.errors import QuotaExhausted, RateLimited, TokensLimited
from corral.core.headers import Header, go_duration
from corral.core.limits import BUDGETS, NEVER_S, Limit, Rules, Standing
from corral.core.tally import Verdict

PERIODS = {Limit.TOKENS_DAY: "day", Limit.TOKENS_MONTH: "month"}


def limit_headers(standings: Iterable[Standing]) -> list[Header]:
    """``x-ratelimit-*``, of requests and of tokens: where several limits count the same, of that with the least left.

    How many requests are in flight is no rate.
    """
    requests: Standing | None = None
    tokens: Standing | None = None
    for standing in standings:
        if standing.limit is Limit.REQUESTS:
            if requests is None or standing.left < requests.left:
                requests = standing
        elif standing.limit is not Limit.IN_FLIGHT and (tokens is None or standing.left < tokens.left):
            tokens = standing
    headers: list[Header] = []
    if requests is not None:
        headers = _headers(requests, b"requests")
    if tokens is not None:
        headers += _headers(tokens, b"tokens")
    return headers


def worst_of(verdict: Verdict) -> Standing:
    """The limit that refuses for longest."""
    return max(verdict.refused, key=lambda standing: standing.wait_s or 0.0)


def refusal(rules: Rules, verdict: Verdict, tokens: int) -> RateLimited:
    """The error for a request of at most so many tokens, by the limit that refuses it for longest."""
    worst = worst_of(verdict)
    kind = QuotaExhausted if worst.limit in BUDGETS else TokensLimited if worst.limit.weighs else RateLimited
    never = worst.wait_s == NEVER_S
    return kind(
        _message(rules, worst, tokens),
        retry_after_s=worst.reset_s if never else worst.wait_s,
        headers=tuple(_refusal_headers(verdict.standings, worst)),
        vain=not rules.divided and (never or worst.limit in BUDGETS),
    )


def _refusal_headers(standings: Sequence[Standing], worst: Standing) -> list[Header]:
    """Those of its kind are of the limit that refused, which is named too."""
    kind = b"tokens" if worst.limit.weighs else b"requests"
    others = (each for each in standings if each.limit.weighs is not worst.limit.weighs)
    return [
        *limit_headers(others),
        *_headers(worst, kind),
        (b"x-corral-limit", worst.limit.value.encode()),
    ]


def _headers(standing: Standing, kind: bytes) -> list[Header]:
    return [
        (b"x-ratelimit-limit-" + kind, b"%d" % standing.value),
        (b"x-ratelimit-remaining-" + kind, b"%d" % standing.left),
        (b"x-ratelimit-reset-" + kind, go_duration(standing.reset_s).encode()),
    ]


def _message(rules: Rules, worst: Standing, tokens: int) -> str:
    return (
        f"client '{rules.client}' {_reached(worst, rules.window_s)}{_at(worst)}{_left(worst, tokens)}; {_advice(worst)}"
    )


def _reached(worst: Standing, window_s: float) -> str:
    match worst.limit:
        case Limit.IN_FLIGHT:
            return f"has as many requests under way as it may have, {worst.value}"
        case Limit.TOKENS_DAY | Limit.TOKENS_MONTH:
            return f"has reached its budget of {worst.value} tokens a {PERIODS[worst.limit]} (UTC)"
        case _:
            return f"has reached its limit of {worst.value} {worst.limit.value} per {go_duration(window_s)}"


def _at(worst: Standing) -> str:
    return f" for the model '{worst.model}'" if worst.model else ""


def _left(worst: Standing, tokens: int) -> str:
    if not worst.limit.weighs:
        return ""
    return f": {worst.left} are left, and this request may take up to {tokens} (its prompt and 'max_tokens')"


def _advice(worst: Standing) -> str:
    if worst.wait_s == NEVER_S:
        return "that is more than the whole limit: lower 'max_tokens', or shorten the prompt"
    if worst.limit is Limit.IN_FLIGHT:
        return "try again when one of them has ended"
    if worst.limit in BUDGETS:
        return f"it begins anew in {go_duration(worst.reset_s)}"
    return f"try again in {go_duration(worst.wait_s or 0.0)}, the whole limit is free in {go_duration(worst.reset_s)}"
