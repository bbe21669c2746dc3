"""What is tried again, when, and when it is given up."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core import errors
from corral.core.errors import CorralError, UpstreamFailed, UpstreamTimeout
from corral.core.retry import BATCH_FAILURES, delay_s, may_retry, next_delay


@dataclass(frozen=True)
class Policy:
    attempts: int = 4
    backoff_s: float = 0.25
    backoff_max_s: float = 4.0
    deadline_s: float = 30.0


policies = st.builds(
    Policy,
    attempts=st.integers(1, 50),
    backoff_s=st.floats(0.0, 10.0),
    backoff_max_s=st.floats(0.0, 60.0),
    deadline_s=st.floats(0.0, 120.0),
)
jitters = st.floats(0.0, 1.0)

REPEATED: list[CorralError] = [
    errors.ConnectFailed("refused"),
    errors.ConnectionLost("reset"),
    errors.ConnectionLost("closed", reused=True),
    errors.UpstreamLoading("loading"),
    errors.BadReply("no HTTP"),
    UpstreamTimeout("connect", 5.0),
    *(UpstreamFailed("failed", upstream_status=status) for status in (429, 502, 503, 504)),
    *(UpstreamFailed(f"{text}.", upstream_status=500) for text in BATCH_FAILURES),
]
NOT_REPEATED: list[CorralError] = [
    UpstreamFailed("tools param requires --jinja flag", upstream_status=500),
    UpstreamFailed("not supported", upstream_status=501),
    *(UpstreamTimeout(phase, 1.0) for phase in ("first_byte", "between_tokens", "total")),
    errors.UpstreamRefused("no", status=400),
    errors.UpstreamRefused("slow down", status=429),
    errors.InvalidRequest("no"),
    errors.RateLimited("no", retry_after_s=1.0),
    errors.QueueFull("full"),
    errors.QueueTimeout("late"),
    errors.NotReady("none"),
    errors.ShuttingDown("bye"),
    CorralError("bug"),
]


@pytest.mark.parametrize("error", REPEATED, ids=repr)
def test_what_passes_and_is_the_replicas_fault_is_tried_again(error: CorralError) -> None:
    assert may_retry(error)
    assert next_delay(error, 1, 0.0, Policy(), 0.5) is not None


@pytest.mark.parametrize("error", NOT_REPEATED, ids=repr)
def test_what_is_the_requests_fault_or_may_still_run_is_not_tried_again(error: CorralError) -> None:
    assert not may_retry(error)
    assert next_delay(error, 1, 0.0, Policy(), 0.5) is None


def test_every_error_of_an_attempt_is_in_one_of_the_two_tables() -> None:
    named = {type(error) for error in REPEATED + NOT_REPEATED}
    assert set(errors.UpstreamError.__subclasses__()) <= named


@pytest.mark.parametrize(
    ("attempt", "low_s", "high_s"), [(1, 0.125, 0.25), (2, 0.25, 0.5), (5, 2.0, 4.0), (9, 2.0, 4.0)]
)
def test_the_pause_doubles_up_to_its_maximum_and_jitter_takes_at_most_half(
    attempt: int, low_s: float, high_s: float
) -> None:
    assert delay_s(attempt, Policy(), 0.0) == low_s
    assert delay_s(attempt, Policy(), 1.0) == high_s


@given(st.integers(1, 10_000), policies, jitters, st.none() | st.floats(0.0, 1000.0))
def test_the_pause_is_bounded_by_the_policy_and_never_shorter_than_the_upstream_asked_for(
    attempt: int, policy: Policy, jitter: float, retry_after_s: float | None
) -> None:
    pause_s = delay_s(attempt, policy, jitter, retry_after_s)
    asked_s = retry_after_s or 0.0
    assert asked_s <= pause_s <= max(policy.backoff_max_s, asked_s)
    assert pause_s <= delay_s(attempt + 1, policy, jitter, retry_after_s)


@given(policies, jitters, st.sampled_from(REPEATED))
def test_retrying_ends_within_the_attempts_and_the_deadline(policy: Policy, jitter: float, error: CorralError) -> None:
    made, elapsed_s = 1, 0.0
    while (pause_s := next_delay(error, made, elapsed_s, policy, jitter)) is not None:
        elapsed_s += pause_s
        made += 1
        assert elapsed_s <= policy.deadline_s
        assert made <= policy.attempts


def test_the_last_attempt_is_not_followed_by_another() -> None:
    error = errors.ConnectFailed("refused")
    assert next_delay(error, 3, 0.0, Policy(), 0.0) is not None
    assert next_delay(error, 4, 0.0, Policy(), 0.0) is None


def test_a_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    error = UpstreamFailed("busy", upstream_status=503, retry_after_s=20.0)
    assert next_delay(error, 1, 9.0, Policy(), 0.5) == 20.0
    assert next_delay(error, 1, 11.0, Policy(), 0.5) is None


def test_an_idle_connection_that_was_closed_is_replaced_without_a_pause() -> None:
    assert next_delay(errors.ConnectionLost("closed", reused=True), 1, 0.0, Policy(), 1.0) == 0.0
    assert next_delay(errors.ConnectionLost("reset"), 1, 0.0, Policy(), 1.0) == 0.25


def test_a_replica_that_has_not_been_tried_need_not_wait_for_the_others() -> None:
    error = UpstreamFailed("busy", upstream_status=503, retry_after_s=3600.0)
    assert next_delay(error, 1, 29.0, Policy(), 1.0, elsewhere=True) == 0.0
    assert next_delay(error, 4, 0.0, Policy(), 1.0, elsewhere=True) is None
    assert next_delay(error, 1, 31.0, Policy(), 1.0, elsewhere=True) is None
    assert next_delay(errors.UpstreamRefused("no"), 1, 0.0, Policy(), 1.0, elsewhere=True) is None
