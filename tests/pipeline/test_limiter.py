"""Clients and their limit."""

import pytest

from corral.core.errors import InvalidRequest, NotReady, QueueFull, RateLimited
from corral.core.principal import ANONYMOUS, OPERATOR, Principal
from corral.pipeline.limiter import Limiter

TEAM_A = Principal("team_a")
TEAM_B = Principal("team_b")


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def take(limiter: Limiter, principal: Principal) -> dict[bytes, bytes]:
    with limiter.admit(principal) as reservation:
        return dict(reservation.headers())


def test_admitted_requests_learn_how_much_is_left() -> None:
    clock = Clock()
    limiter = Limiter(3, 60.0, clock)
    assert take(limiter, TEAM_A) == {
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"1m0s",
    }
    clock.now += 1
    assert take(limiter, TEAM_A)[b"x-ratelimit-remaining-requests"] == b"1"
    assert take(limiter, TEAM_A)[b"x-ratelimit-remaining-requests"] == b"0"


def test_a_refusal_says_which_limit_its_value_and_when_it_resets() -> None:
    clock = Clock()
    limiter = Limiter(2, 360.0, clock)
    take(limiter, TEAM_A)
    clock.now += 10
    take(limiter, TEAM_A)
    with pytest.raises(RateLimited) as refusal:
        take(limiter, TEAM_A)
    error = refusal.value
    assert error.message == (
        "client 'team_a' has reached its limit of 2 requests per 6m0s; "
        "try again in 5m50s, the whole limit is free in 6m0s"
    )
    assert error.retry_after_s == 350.0
    assert error.headers == (
        (b"x-ratelimit-limit-requests", b"2"),
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"x-ratelimit-reset-requests", b"6m0s"),
    )


def test_a_refused_client_is_admitted_after_the_time_it_was_told() -> None:
    clock = Clock()
    limiter = Limiter(1, 60.0, clock)
    take(limiter, TEAM_A)
    clock.now += 0.5
    with pytest.raises(RateLimited) as refusal:
        take(limiter, TEAM_A)
    assert refusal.value.retry_after_s is not None
    clock.now += refusal.value.retry_after_s
    take(limiter, TEAM_A)


def test_two_keys_of_one_client_share_its_limit_and_other_clients_have_their_own() -> None:
    limiter = Limiter(1, 60.0, Clock())
    take(limiter, TEAM_A)
    with pytest.raises(RateLimited):
        take(limiter, Principal("team_a", OPERATOR))
    take(limiter, TEAM_B)
    take(limiter, ANONYMOUS)


def test_a_limit_of_zero_is_no_limit_and_says_nothing() -> None:
    limiter = Limiter(0, 60.0, Clock())
    assert all(take(limiter, TEAM_A) == {} for _ in range(1000))


@pytest.mark.parametrize("error", [QueueFull("full"), NotReady("none")], ids=repr)
def test_what_the_queue_turns_away_is_refunded(error: Exception) -> None:
    limiter = Limiter(1, 60.0, Clock())
    with pytest.raises(type(error)), limiter.admit(TEAM_A):
        raise error
    take(limiter, TEAM_A)


@pytest.mark.parametrize("error", [InvalidRequest("no"), KeyError("bug")], ids=repr)
def test_what_failed_for_another_reason_stays_counted(error: Exception) -> None:
    limiter = Limiter(1, 60.0, Clock())
    with pytest.raises(type(error)), limiter.admit(TEAM_A):
        raise error
    with pytest.raises(RateLimited):
        take(limiter, TEAM_A)


def test_a_refund_gives_back_one_share_however_often_it_is_asked_for() -> None:
    limiter = Limiter(2, 60.0, Clock())
    take(limiter, TEAM_A)
    with limiter.admit(TEAM_A) as reservation:
        reservation.refund()
        reservation.refund()
    take(limiter, TEAM_A)
    with pytest.raises(RateLimited):
        take(limiter, TEAM_A)


def test_a_refund_without_a_limit_does_nothing() -> None:
    limiter = Limiter(0, 60.0, Clock())
    with limiter.admit(TEAM_A) as reservation:
        reservation.refund()
        assert reservation.headers() == []
