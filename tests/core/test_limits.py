"""The sliding window against its definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.limits import SlidingWindow

# Times are multiples of 1/64 s, so that sums and differences are exact and
# "an instant before" means something.
INSTANT_S = 1 / 64

steps = st.lists(st.integers(min_value=0, max_value=256).map(lambda n: n * INSTANT_S), min_size=1, max_size=80)
limits = st.integers(min_value=1, max_value=8)
windows = st.integers(min_value=1, max_value=512).map(lambda n: n * INSTANT_S)


def times(gaps: list[float]) -> list[float]:
    now, result = 1000.0, []
    for gap in gaps:
        now += gap
        result.append(now)
    return result


def used(admitted: list[float], now: float, window_s: float) -> int:
    """The definition: how many were admitted in (now - window, now]."""
    return sum(1 for stamp in admitted if now - window_s < stamp <= now)


@given(limits, windows, steps)
def test_a_request_is_admitted_exactly_when_the_window_before_it_holds_fewer_than_the_limit(
    limit: int, window_s: float, gaps: list[float]
) -> None:
    window, admitted = SlidingWindow(limit, window_s), list[float]()
    for now in times(gaps):
        before = used(admitted, now, window_s)
        decision = window.try_take(now)
        assert decision.admitted == (before < limit)
        if decision.admitted:
            admitted.append(now)
        assert decision.remaining == limit - used(admitted, now, window_s)
        assert decision.limit == limit


@given(limits, windows, steps)
def test_no_span_of_the_windows_length_ever_holds_more_than_the_limit(
    limit: int, window_s: float, gaps: list[float]
) -> None:
    window = SlidingWindow(limit, window_s)
    admitted = [now for now in times(gaps) if window.try_take(now).admitted]
    for start in admitted:
        assert sum(1 for stamp in admitted if start <= stamp < start + window_s) <= limit


@given(limits, windows, steps)
def test_a_refused_request_is_admitted_at_the_moment_it_was_told_and_not_an_instant_before(
    limit: int, window_s: float, gaps: list[float]
) -> None:
    window = SlidingWindow(limit, window_s)
    for now in times(gaps):
        decision = window.try_take(now)
        if decision.admitted:
            assert decision.retry_after_s is None
            continue
        assert decision.retry_after_s is not None
        assert 0 < decision.retry_after_s <= decision.reset_s <= window_s
        early, due = now + decision.retry_after_s - INSTANT_S, now + decision.retry_after_s
        if early >= now:
            assert not window.try_take(early).admitted
        assert window.try_take(due).admitted
        return


@given(limits, windows, steps)
def test_after_the_reset_the_whole_limit_is_free(limit: int, window_s: float, gaps: list[float]) -> None:
    window = SlidingWindow(limit, window_s)
    decision, now = window.try_take(1000.0), 1000.0
    for now in times(gaps):
        decision = window.try_take(now)
    due = now + decision.reset_s
    assert [window.try_take(due).admitted for _ in range(limit + 1)] == [True] * limit + [False]


@given(limits, windows, steps, st.data())
def test_what_is_given_back_was_never_taken(
    limit: int, window_s: float, gaps: list[float], data: st.DataObject
) -> None:
    window, held = SlidingWindow(limit, window_s), list[tuple[float, float]]()
    for now in times(gaps):
        if data.draw(st.booleans()) and held:
            taken = held.pop(data.draw(st.integers(0, len(held) - 1)))
            window.give_back(taken[1])
        decision = window.try_take(now)
        assert decision.admitted == (used([at for at, _ in held], now, window_s) < limit)
        if decision.stamp is not None:
            held.append((now, decision.stamp))


def test_giving_back_what_has_left_the_window_frees_nothing() -> None:
    window = SlidingWindow(1, 10.0)
    old = window.try_take(0.0)
    assert window.try_take(10.0).admitted
    assert old.stamp is not None
    window.give_back(old.stamp)
    assert not window.try_take(10.0).admitted


def test_there_is_no_double_burst_at_a_boundary() -> None:
    window = SlidingWindow(600, 60.0)
    assert all(window.try_take(59.5).admitted for _ in range(600))
    assert not any(window.try_take(60.5).admitted for _ in range(600))
    assert not window.try_take(119.25).admitted
    assert window.try_take(119.5).admitted


def test_refused_requests_do_not_push_the_moment_of_admission_away() -> None:
    window = SlidingWindow(1, 10.0)
    window.try_take(0.0)
    waits = [window.try_take(float(now)).retry_after_s for now in range(1, 10)]
    assert waits == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_memory_is_bounded_by_the_limit() -> None:
    window = SlidingWindow(3, 1.0)
    for step in range(10_000):
        window.try_take(step * INSTANT_S)
        assert len(window._leaving) <= 3


@given(limits, st.lists(st.integers(min_value=-1000, max_value=1000), min_size=1, max_size=80))
def test_a_clock_that_steps_back_admits_no_more_than_the_limit_and_recovers(limit: int, gaps: list[int]) -> None:
    window, latest, now = SlidingWindow(limit, 10.0), float("-inf"), 0.0
    admitted: list[float] = []
    for gap in gaps:
        now += gap
        latest = max(latest, now)
        if window.try_take(now).admitted:
            admitted.append(latest)
        assert used(admitted, latest, 10.0) <= limit
    assert window.try_take(latest + 10.0).admitted


def test_what_was_taken_after_the_clock_stepped_back_can_be_given_back() -> None:
    window = SlidingWindow(2, 10.0)
    window.try_take(100.0)
    late = window.try_take(5.0)
    assert late.stamp is not None
    window.give_back(late.stamp)
    assert window.try_take(6.0).admitted


@pytest.mark.parametrize(("limit", "window_s"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -1.0)])
def test_a_window_without_room_or_length_cannot_be_made(limit: int, window_s: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        SlidingWindow(limit, window_s)
