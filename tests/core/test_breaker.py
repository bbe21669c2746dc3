"""When a replica is left alone, and when it is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core import errors
from corral.core.breaker import FAILURES, PAUSE_MAX_S, PAUSE_S, Breaker, blames


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.ended(now, failed=True, trial=False)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for number in range(FAILURES):
        assert (breaker.closed, breaker.lets(0.0)) == (True, True), number
        breaker.ended(0.0, failed=True, trial=False)
    assert (breaker.closed, breaker.lets(0.0)) == (False, False)


def test_a_success_between_them_does_not_let_it_open() -> None:
    breaker = Breaker()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            breaker.ended(0.0, failed=True, trial=False)
        breaker.ended(0.0, failed=False, trial=False)
    assert breaker.closed


def test_calls_that_say_nothing_change_nothing() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.ended(0.0, failed=None, trial=False)
    assert breaker.closed
    breaker = opened()
    breaker.ended(0.0, failed=None, trial=False)
    assert not breaker.lets(0.0)


def test_after_a_pause_one_call_at_a_time_tries_it() -> None:
    breaker = opened()
    assert not breaker.lets(PAUSE_S / 2)
    assert not breaker.started(PAUSE_S / 2)
    assert breaker.lets(PAUSE_S)
    assert breaker.started(PAUSE_S)
    assert not breaker.lets(PAUSE_S)
    assert not breaker.started(PAUSE_S)
    breaker.ended(PAUSE_S, failed=False, trial=True)
    assert (breaker.closed, breaker.lets(PAUSE_S)) == (True, True)


def test_a_trial_whose_client_left_leaves_room_for_the_next() -> None:
    breaker = opened()
    assert breaker.started(PAUSE_S)
    breaker.ended(PAUSE_S, failed=None, trial=True)
    assert (breaker.closed, breaker.lets(PAUSE_S)) == (False, True)


def test_each_trial_that_fails_doubles_the_pause_to_a_limit() -> None:
    breaker, now, pauses = opened(), PAUSE_S, []
    for _ in range(10):
        assert breaker.started(now)
        told = breaker.ended(now, failed=True, trial=True)
        pause = next(pause for pause in (2.0**each for each in range(1, 20)) if breaker.lets(now + min(pause, 60.0)))
        pauses.append(min(pause, PAUSE_MAX_S))
        assert told == pauses[-1]
        now += pauses[-1]
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert pauses[-1] == PAUSE_MAX_S


def test_calls_that_ran_when_it_opened_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    assert breaker.ended(PAUSE_S / 2, failed=True, trial=False) is None
    assert breaker.lets(PAUSE_S)


def test_another_process_begins_with_a_clean_sheet() -> None:
    breaker = opened()
    breaker.reset()
    assert (breaker.closed, breaker.lets(0.0)) == (True, True)


@given(st.lists(st.tuples(st.sampled_from([None, True, False]), st.floats(0, 100)), max_size=50))
def test_it_never_shuts_a_replica_out_for_ever_and_never_lets_two_try(steps: list[tuple[bool | None, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for failed, pause in steps:
        now += pause
        if breaker.lets(now):
            trial = breaker.started(now)
            assert not (trial and breaker.lets(now))
            breaker.ended(now, failed=failed, trial=trial)
        assert breaker.lets(now + PAUSE_MAX_S)


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (errors.ConnectFailed("x"), True),
        (errors.ConnectionLost("x"), True),
        (errors.ConnectionLost("x", reused=True), False),
        (errors.BadReply("x"), True),
        (errors.UpstreamTimeout("connect", 1.0), True),
        (errors.UpstreamTimeout("between_tokens", 1.0), False),
        (errors.UpstreamFailed("x", upstream_status=500), True),
        (errors.UpstreamFailed("x", upstream_status=429), False),
        (errors.UpstreamFailed("Compute error.", upstream_status=500), True),
        # Another call in its batch was too long.
        (errors.UpstreamFailed("Context size has been exceeded.", upstream_status=500), False),
        (errors.UpstreamLoading("x"), False),
        (errors.UpstreamRefused("x"), False),
        (errors.ContextLengthExceeded("x"), False),
    ],
)
def test_what_is_the_replicas_own_fault(error: errors.CorralError, blamed: bool) -> None:
    assert blames(error) is blamed
