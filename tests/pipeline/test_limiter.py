"""Clients and their limits."""

import logging
from contextlib import suppress
from typing import Any

import pytest

from corral.config import LimitSettings
from corral.core.call import Call, Endpoint
from corral.core.errors import (
    CorralError,
    InvalidRequest,
    LimitsUnavailable,
    NotReady,
    QueueFull,
    QuotaExhausted,
    RateLimited,
    TokensLimited,
)
from corral.core.limits import Limit, Rules, Standing
from corral.core.principal import ANONYMOUS, OPERATOR, Principal, Quota
from corral.core.record import Record
from corral.core.tally import Verdict
from corral.core.usage import Usage
from corral.openai.errors import error_headers
from corral.pipeline.limiter import Limiter, Shared
from corral.pipeline.reservation import Reservation, Settle
from support.run import async_test

TEAM_A = Principal("team_a")
TEAM_B = Principal("team_b")
# 2026-11-25 at 12:00 UTC.
NOON = 1_795_608_000.0
# What a call of the tests can take at most: 50 bytes, the template, and the reply.
MOST = 50 + 256 + 100


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def unix(self) -> float:
        return NOON - 1000.0 + self.now


class Limited:
    """A limiter with these settings, and what it has counted."""

    def __init__(self, shared: Shared | None = None, share: int | None = None, **settings: Any) -> None:
        self.clock = Clock()
        self.counted: list[tuple[Limit, bool]] = []
        self.limiter = Limiter(
            LimitSettings(**settings),
            self.clock,
            self.clock.unix,
            lambda limit, shadow: self.counted.append((limit, shadow)),
            shared,
            share,
        )

    async def admit(
        self, principal: Principal = TEAM_A, record: Record | None = None, model: str = "llama", **call: Any
    ) -> Reservation:
        fields = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
        asked = Call(Endpoint.CHAT, model, fields, **{"max_tokens": 100, **call})
        return await self.limiter.admit(principal, asked, model, record or record_of(), lambda: None)

    async def take(self, principal: Principal = TEAM_A, used: int = 0, **call: Any) -> dict[bytes, bytes]:
        """One call that goes well; the headers that it was told."""
        with await self.admit(principal, record_of(used), **call) as reservation:
            return dict(reservation.headers)

    async def refused(self, principal: Principal = TEAM_A, **call: Any) -> RateLimited:
        with pytest.raises(RateLimited) as refusal:
            await self.admit(principal, **call)
        return refusal.value


class Told(logging.Handler):
    """What the log was told. Written by whoever logs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def record_of(used: int = 0) -> Record:
    return Record("req_1", Endpoint.CHAT, 0.0, 0.0, bytes_in=50, usage=Usage(used, 0, 0))


# -- requests -----------------------------------------------------------------


@async_test
async def test_admitted_requests_learn_how_much_is_left() -> None:
    limited = Limited(requests=3)
    assert await limited.take() == {
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"1m0s",
    }
    limited.clock.now += 1
    assert (await limited.take())[b"x-ratelimit-remaining-requests"] == b"1"
    assert (await limited.take())[b"x-ratelimit-remaining-requests"] == b"0"


@async_test
async def test_a_refusal_says_which_limit_its_value_and_when_it_resets() -> None:
    limited = Limited(requests=2, window_s=360.0)
    await limited.take()
    limited.clock.now += 10
    await limited.take()
    error = await limited.refused()
    assert error.message == (
        "client 'team_a' has reached its limit of 2 requests per 6m0s; "
        "try again in 5m50s, the whole limit is free in 6m0s"
    )
    assert (error.type, error.code, error.retry_after_s, error.vain) == (
        "requests",
        "rate_limit_exceeded",
        350.0,
        False,
    )
    assert error.headers == (
        (b"x-ratelimit-limit-requests", b"2"),
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"x-ratelimit-reset-requests", b"6m0s"),
        (b"x-corral-limit", b"requests"),
    )
    assert limited.counted == [(Limit.REQUESTS, False)]


@async_test
async def test_a_refused_client_is_admitted_after_the_time_it_was_told() -> None:
    limited = Limited(requests=1)
    await limited.take()
    limited.clock.now += 0.5
    error = await limited.refused()
    assert error.retry_after_s is not None
    limited.clock.now += error.retry_after_s
    await limited.take()


@async_test
async def test_two_keys_of_one_client_share_its_limit_and_other_clients_have_their_own() -> None:
    limited = Limited(requests=1)
    await limited.take()
    await limited.refused(Principal("team_a", OPERATOR))
    await limited.take(TEAM_B)
    await limited.take(ANONYMOUS)
    # A key of the store has limits of its own, whoever's it is.
    await limited.take(Principal("team_a", key_id="k1"))


@async_test
async def test_limits_of_zero_are_no_limits_and_say_nothing() -> None:
    limited = Limited(requests=0)
    for _ in range(1000):
        assert await limited.take() == {}


@pytest.mark.parametrize("error", [QueueFull("full"), NotReady("none")], ids=repr)
def test_what_the_queue_turns_away_is_refunded(error: CorralError) -> None:
    @async_test
    async def run() -> None:
        limited = Limited(requests=1, tokens=MOST, in_flight=1, tokens_day=MOST)
        with suppress(CorralError), await limited.admit():
            raise error
        await limited.take()

    run()


@pytest.mark.parametrize("error", [InvalidRequest("no"), KeyError("bug")], ids=repr)
def test_what_failed_for_another_reason_stays_counted_but_for_its_tokens(error: Exception) -> None:
    @async_test
    async def run() -> None:
        limited = Limited(requests=2, tokens=MOST, in_flight=1)
        with suppress(type(error)), await limited.admit():
            raise error
        assert (await limited.take())[b"x-ratelimit-remaining-requests"] == b"0"

    run()


# -- tokens -------------------------------------------------------------------


@async_test
async def test_tokens_are_reserved_and_what_was_used_is_counted() -> None:
    limited = Limited(requests=0, tokens=1000)
    headers = await limited.take(used=200)
    assert headers == {
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"%d" % (1000 - MOST),
        b"x-ratelimit-reset-tokens": b"1m0s",
    }
    assert (await limited.take(used=600))[b"x-ratelimit-remaining-tokens"] == b"%d" % (800 - MOST)
    error = await limited.refused()
    assert isinstance(error, TokensLimited)
    assert error.message == (
        "client 'team_a' has reached its limit of 1000 tokens per 1m0s: 200 are left, and this request may take up to "
        f"{MOST} (its prompt and 'max_tokens'); try again in 1m0.02s, the whole limit is free in 1m0.02s"
    )
    assert (error.type, error.code, error.vain) == ("tokens", "rate_limit_exceeded", False)
    assert dict(error.headers)[b"x-corral-limit"] == b"tokens"


@async_test
async def test_what_can_never_be_admitted_is_told_what_to_change() -> None:
    error = await Limited(tokens=300).refused()
    assert error.message == (
        f"client 'team_a' has reached its limit of 300 tokens per 1m0s: 300 are left, and this request may take up to "
        f"{MOST} (its prompt and 'max_tokens'); that is more than the whole limit: lower 'max_tokens', or shorten the "
        "prompt"
    )
    assert (b"x-should-retry", b"false") in error_headers(error)


@async_test
async def test_a_default_of_max_tokens_becomes_what_the_limit_can_admit() -> None:
    with await Limited(tokens=350).admit(max_tokens_given=False) as reservation:
        assert reservation.call.max_tokens == reservation.call.fields["max_tokens"] == 350 - 50 - 256


# -- in flight ----------------------------------------------------------------


@async_test
async def test_requests_in_flight_are_given_back_when_they_end() -> None:
    limited = Limited(requests=10, in_flight=1)
    with await limited.admit():
        error = await limited.refused()
        assert error.message == (
            "client 'team_a' has as many requests under way as it may have, 1; try again when one of them has ended"
        )
        assert dict(error.headers)[b"x-ratelimit-limit-requests"] == b"1"
        assert dict(error.headers)[b"x-corral-limit"] == b"in_flight"
        assert error.retry_after_s == 1.0
    # The one that was refused has consumed nothing.
    assert (await limited.take())[b"x-ratelimit-remaining-requests"] == b"8"


# -- budgets ------------------------------------------------------------------


@async_test
async def test_a_budget_that_is_used_up_is_not_worth_waiting_for() -> None:
    limited = Limited(requests=0, tokens_day=1000, tokens_month=5000)
    await limited.take(used=900)
    error = await limited.refused()
    assert isinstance(error, QuotaExhausted)
    assert (error.type, error.code, error.retry_after_s) == ("insufficient_quota", "insufficient_quota", 12 * 3600.0)
    assert error.message == (
        "client 'team_a' has reached its budget of 1000 tokens a day (UTC): 100 are left, and this request may take up "
        f"to {MOST} (its prompt and 'max_tokens'); it begins anew in 12h0m0s"
    )
    headers = dict(error_headers(error))
    assert (headers[b"x-should-retry"], headers[b"retry-after"]) == (b"false", b"43200")
    assert headers[b"x-ratelimit-remaining-tokens"] == b"100"
    limited.clock.now += 12 * 3600
    assert (await limited.take())[b"x-ratelimit-remaining-tokens"] == b"%d" % (1000 - MOST)


@async_test
async def test_budgets_go_on_from_what_the_store_remembers() -> None:
    limited = Limited(tokens_day=1000)
    limited.limiter.restore("client:team_a", 900, 900, limited.clock.unix())
    assert (await limited.refused()).code == "insufficient_quota"
    await limited.take(TEAM_B)


# -- limits on a request ------------------------------------------------------


@async_test
async def test_a_request_for_too_much_is_refused_and_consumes_nothing() -> None:
    limited = Limited(requests=1, max_tokens=50)
    with pytest.raises(InvalidRequest, match="may ask for at most 50"):
        await limited.admit()
    assert limited.counted == [(Limit.MAX_TOKENS, False)]
    await limited.take(max_tokens=50)


# -- keys, models, shadow, reload ---------------------------------------------


@async_test
async def test_a_key_has_limits_of_its_own_and_more_for_a_model() -> None:
    limited = Limited(requests=1)
    quotas = (("big-*", Quota(requests=1)),)
    key = Principal("team_a", key_id="k1", quota=Quota(requests=3), model_quotas=quotas)
    await limited.take(key, model="big-1")
    error = await limited.refused(key, model="big-1")
    assert "limit of 1 requests per 1m0s for the model 'big-1'" in error.message
    await limited.take(key, model="big-2")
    await limited.take(key, model="small")
    await limited.refused(key, model="small")


@async_test
async def test_a_key_whose_limits_change_keeps_what_it_has_used() -> None:
    limited = Limited()
    for limit, left in ((5, b"4"), (3, b"1"), (9, b"6")):
        key = Principal("team_a", key_id="k1", quota=Quota(requests=limit))
        assert (await limited.take(key))[b"x-ratelimit-remaining-requests"] == left


@async_test
async def test_a_limit_in_shadow_reports_and_refuses_nothing() -> None:
    handler = Told()
    logging.getLogger("corral").addHandler(handler)
    try:
        limited = Limited(requests=1, max_tokens=50, shadow=("requests", "max_tokens"))
        for _ in range(3):
            assert await limited.take() == {}
        limited.clock.now += 60
        await limited.take(max_tokens=50)
        await limited.take(max_tokens=50)
    finally:
        logging.getLogger("corral").removeHandler(handler)
    assert limited.counted == [
        (Limit.MAX_TOKENS, True),
        (Limit.MAX_TOKENS, True),
        (Limit.REQUESTS, True),
        (Limit.MAX_TOKENS, True),
        (Limit.REQUESTS, True),
        (Limit.REQUESTS, True),
    ]
    assert [(record.getMessage(), record.fields["limit"], record.fields["times"]) for record in handler.records] == [
        ("limit would refuse", "max_tokens", 1),
        ("limit would refuse", "requests", 1),
        ("limit would refuse", "requests", 2),
    ]


@async_test
async def test_other_settings_count_at_once_and_what_was_used_stays_used() -> None:
    limited = Limited(requests=5)
    await limited.take()
    limited.limiter.change(LimitSettings(requests=2, window_s=10.0))
    assert (await limited.take())[b"x-ratelimit-remaining-requests"] == b"0"
    error = await limited.refused()
    assert "2 requests per 10s" in error.message


# -- counted together with others ---------------------------------------------


class Together:
    """What several count. Written by the limiter of a test."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.taken: list[tuple[str, int]] = []
        self.settled: list[tuple[int, bool]] = []
        self.restored: list[tuple[str, int, int, float]] = []

    async def take(self, rules: Rules, tokens: int) -> tuple[Verdict, Settle | None] | None:
        if self.away:
            return None
        self.taken.append((rules.account, tokens))
        return Verdict([Standing(Limit.TOKENS, "", 1000, 7, 60.0)]), lambda used, ran: self.settled.append((used, ran))

    def restore(self, account: str, tokens_day: int, tokens_month: int, unix_s: float) -> None:
        self.restored.append((account, tokens_day, tokens_month, unix_s))


@async_test
async def test_limits_that_are_shared_are_counted_elsewhere() -> None:
    together = Together()
    limited = Limited(together, tokens=1000)
    assert (await limited.take(used=30))[b"x-ratelimit-remaining-tokens"] == b"7"
    assert together.taken == [("client:team_a", MOST)]
    assert together.settled == [(30, True)]
    limited.limiter.restore("client:team_a", 5, 10, NOON)
    assert together.restored == [("client:team_a", 5, 10, NOON)]


@async_test
async def test_while_nobody_can_count_everything_is_refused_where_that_is_wanted() -> None:
    limited = Limited(Together(away=True))
    with pytest.raises(LimitsUnavailable) as refusal:
        await limited.take()
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 1.0)


@async_test
async def test_while_nobody_can_count_limits_in_shadow_refuse_nothing_either() -> None:
    limited = Limited(Together(away=True), requests=1, tokens=1, shadow=("requests", "tokens"))
    assert await limited.take() == {}
    limited = Limited(Together(away=True), requests=1, tokens=1, shadow=("tokens",))
    with pytest.raises(LimitsUnavailable):
        await limited.take()


@async_test
async def test_while_nobody_can_count_a_share_is_admitted_where_that_is_wanted() -> None:
    limited = Limited(Together(away=True), 4, requests=10, in_flight=3)
    error = await limited.refused()
    assert (error.retry_after_s, error.vain) == (1.0, False)
    limited.limiter.change(LimitSettings(requests=10))
    assert [(await limited.take())[b"x-ratelimit-remaining-requests"] for _ in range(2)] == [b"1", b"0"]
    await limited.refused()


@async_test
async def test_who_has_no_limits_needs_nobody_to_count_them() -> None:
    assert await Limited(Together(away=True), requests=0).take() == {}
