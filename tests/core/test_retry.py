"""What is tried again, when, and when it is given up."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core import errors
from corral.core.errors import CorralError, UpstreamFailed, UpstreamTimeout
from corral.core.retry import BATCH_FAILURES, Tries, delay_s, may_resume, may_retry


@dataclass(frozen=True)
class Policy:
    attempts: int = 4
    backoff_s: float = 0.25
    backoff_max_s: float = 4.0
    deadline_s: float = 30.0
    resumes: int = 4


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
    errors.Withdrawn("drained"),
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


def failed(
    error: CorralError, times: int = 1, elapsed_s: float = 0.0, *, jitter: float = 0.0, elsewhere: bool = False
) -> float | None:
    """The pause behind the last of so many failures in a row."""
    tries = Tries(Policy())
    pauses = [tries.retry_s(error, 100.0, 100.0 + elapsed_s, jitter, elsewhere=elsewhere) for _ in range(times)]
    return pauses[-1]


@pytest.mark.parametrize("error", REPEATED, ids=repr)
def test_what_passes_and_is_the_replicas_fault_is_tried_again(error: CorralError) -> None:
    assert may_retry(error)
    assert may_resume(error, elsewhere=False)
    assert failed(error) is not None


@pytest.mark.parametrize("error", NOT_REPEATED, ids=repr)
def test_what_is_the_requests_fault_or_may_still_run_is_not_tried_again(error: CorralError) -> None:
    assert not may_retry(error)
    assert failed(error, elsewhere=True) is None


@pytest.mark.parametrize("error", NOT_REPEATED, ids=repr)
def test_of_what_is_not_tried_again_only_an_answer_that_stalls_is_gone_on_with_and_only_elsewhere(
    error: CorralError,
) -> None:
    assert may_resume(error, elsewhere=True) is isinstance(error, UpstreamTimeout)
    assert not may_resume(error, elsewhere=False)


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
    tries, made, now = Tries(policy), 1, 100.0
    while (pause_s := tries.retry_s(error, 100.0, now, jitter)) is not None:
        now += pause_s
        made += 1
        assert now - 100.0 <= policy.deadline_s * (1 + 1e-9)
        assert made <= policy.attempts


def test_the_last_attempt_is_not_followed_by_another() -> None:
    error = errors.ConnectFailed("refused")
    assert failed(error, times=3) is not None
    assert failed(error, times=4) is None


def test_a_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    error = UpstreamFailed("busy", upstream_status=503, retry_after_s=20.0)
    assert failed(error, elapsed_s=9.0) == 20.0
    assert failed(error, elapsed_s=11.0) is None


def test_an_idle_connection_that_was_closed_is_replaced_without_a_pause() -> None:
    assert failed(errors.ConnectionLost("closed", reused=True), jitter=1.0) == 0.0
    assert failed(errors.ConnectionLost("reset"), jitter=1.0) == 0.25


def test_a_replica_that_has_not_been_tried_need_not_wait_for_the_others() -> None:
    error = UpstreamFailed("busy", upstream_status=503, retry_after_s=3600.0)
    assert failed(error, elapsed_s=29.0, elsewhere=True) == 0.0
    assert failed(error, times=4, elsewhere=True) is None
    assert failed(error, elapsed_s=31.0, elsewhere=True) is None
    assert failed(errors.UpstreamRefused("no"), elsewhere=True) is None


# Answers that broke off.

LOST = errors.ConnectionLost("killed")


def test_an_answer_that_gets_further_each_time_is_gone_on_with_as_often_as_the_setting_says() -> None:
    tries = Tries(Policy(attempts=2, resumes=3, deadline_s=5.0))
    # Minutes lie between them: each break starts the time for retries anew.
    pauses = [tries.resume_s(LOST, 100.0 * breaks, 0.0, 10 * breaks, elsewhere=True) for breaks in range(1, 5)]
    assert pauses == [0.0, 0.0, 0.0, None]


def test_attempts_that_get_no_further_are_counted_as_any_others() -> None:
    tries = Tries(Policy(attempts=3))
    pauses = [tries.resume_s(LOST, 100.0, 0.0, 7) for _ in range(3)]
    assert pauses == [0.125, 0.25, None]
    tries = Tries(Policy(deadline_s=5.0))
    assert tries.resume_s(LOST, 100.0, 0.0, 7) is not None
    assert tries.resume_s(LOST, 106.0, 0.0, 7) is None


def test_an_answer_that_must_not_be_gone_on_with_is_not() -> None:
    assert Tries(Policy(resumes=0)).resume_s(LOST, 100.0, 0.0, 7, elsewhere=True) is None
    assert Tries(Policy()).resume_s(errors.UpstreamRefused("no"), 100.0, 0.0, 7, elsewhere=True) is None
