"""What limits count with, against their definitions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.calendar import day_of, month_of
from corral.core.limits import HINT_S, NEVER_S
from corral.core.meters import GRAINS, WALK, Budget, InFlight, Moment, RequestWindow, TokenWindow

# Times are multiples of 1/64 s, so that sums and differences are exact and
# "an instant before" means something.
INSTANT_S = 1 / 64

steps = st.lists(st.integers(min_value=0, max_value=256).map(lambda n: n * INSTANT_S), min_size=1, max_size=80)
limits = st.integers(min_value=1, max_value=8)
windows = st.integers(min_value=1, max_value=512).map(lambda n: n * INSTANT_S)


def moment(now: float) -> Moment:
    return Moment(now, now)


def times(gaps: list[float]) -> list[float]:
    now, result = 1000.0, []
    for gap in gaps:
        now += gap
        result.append(now)
    return result


def used(admitted: list[float], now: float, window_s: float) -> int:
    """The definition: how many were admitted in (now - window, now]."""
    return sum(1 for stamp in admitted if now - window_s < stamp <= now)


@dataclass
class Requests:
    """A window of requests that is asked and taken from in one."""

    limit: int
    window_s: float

    def __post_init__(self) -> None:
        self.meter = RequestWindow(self.window_s)
        self.mark: float = 0.0

    def take(self, now: float) -> bool:
        if self.meter.wait_s(1, self.limit, moment(now)) is not None:
            return False
        self.mark = self.meter.take(1, moment(now))
        return True


# -- requests -----------------------------------------------------------------


@given(limits, windows, steps)
def test_a_request_is_admitted_exactly_when_the_window_before_it_holds_fewer_than_the_limit(
    limit: int, window_s: float, gaps: list[float]
) -> None:
    window, admitted = Requests(limit, window_s), list[float]()
    for now in times(gaps):
        before = used(admitted, now, window_s)
        taken = window.take(now)
        assert taken == (before < limit)
        if taken:
            admitted.append(now)
        assert window.meter.left(limit) == limit - used(admitted, now, window_s)


@given(limits, windows, steps)
def test_no_span_of_the_windows_length_ever_holds_more_than_the_limit(
    limit: int, window_s: float, gaps: list[float]
) -> None:
    window = Requests(limit, window_s)
    admitted = [now for now in times(gaps) if window.take(now)]
    for start in admitted:
        assert sum(1 for stamp in admitted if start <= stamp < start + window_s) <= limit


@given(limits, windows, steps)
def test_a_refused_request_is_admitted_at_the_moment_it_was_told_and_not_an_instant_before(
    limit: int, window_s: float, gaps: list[float]
) -> None:
    window = Requests(limit, window_s)
    for now in times(gaps):
        if window.take(now):
            continue
        wait_s = window.meter.wait_s(1, limit, moment(now))
        assert wait_s is not None
        assert 0 < wait_s <= window.meter.reset_s(moment(now)) <= window_s
        early, due = now + wait_s - INSTANT_S, now + wait_s
        if early >= now:
            assert not window.take(early)
        assert window.take(due)
        return


@given(limits, windows, steps)
def test_after_the_reset_the_whole_limit_is_free(limit: int, window_s: float, gaps: list[float]) -> None:
    window, now = Requests(limit, window_s), 1000.0
    for now in times(gaps):
        window.take(now)
    due = now + window.meter.reset_s(moment(now))
    assert [window.take(due) for _ in range(limit + 1)] == [True] * limit + [False]


@given(limits, windows, steps, st.data())
def test_what_is_given_back_was_never_taken(
    limit: int, window_s: float, gaps: list[float], data: st.DataObject
) -> None:
    window, held = Requests(limit, window_s), list[tuple[float, float]]()
    for now in times(gaps):
        if data.draw(st.booleans()) and held:
            taken = held.pop(data.draw(st.integers(0, len(held) - 1)))
            window.meter.settle(taken[1], 1, 0, moment(now))
        admitted = window.take(now)
        assert admitted == (used([at for at, _ in held], now, window_s) < limit)
        if admitted:
            held.append((now, window.mark))


def test_giving_back_what_has_left_the_window_frees_nothing() -> None:
    window = Requests(1, 10.0)
    assert window.take(0.0)
    old = window.mark
    assert window.take(10.0)
    window.meter.settle(old, 1, 0, moment(10.0))
    assert not window.take(10.0)


def test_there_is_no_double_burst_at_a_boundary() -> None:
    window = Requests(600, 60.0)
    assert all(window.take(59.5) for _ in range(600))
    assert not any(window.take(60.5) for _ in range(600))
    assert not window.take(119.25)
    assert window.take(119.5)


def test_refused_requests_do_not_push_the_moment_of_admission_away() -> None:
    window = RequestWindow(10.0)
    window.take(1, moment(0.0))
    waits = [window.wait_s(1, 1, moment(float(now))) for now in range(1, 10)]
    assert waits == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_memory_is_bounded_by_the_limit() -> None:
    window = Requests(3, 1.0)
    for step in range(10_000):
        window.take(step * INSTANT_S)
        assert len(window.meter._leaving) <= 3


@given(limits, st.lists(st.integers(min_value=-1000, max_value=1000), min_size=1, max_size=80))
def test_a_clock_that_steps_back_admits_no_more_than_the_limit_and_recovers(limit: int, gaps: list[int]) -> None:
    window, latest, now = Requests(limit, 10.0), float("-inf"), 0.0
    admitted: list[float] = []
    for gap in gaps:
        now += gap
        latest = max(latest, now)
        if window.take(now):
            admitted.append(latest)
        assert used(admitted, latest, 10.0) <= limit
    assert window.take(latest + 10.0)


def test_what_was_taken_after_the_clock_stepped_back_can_be_given_back() -> None:
    window = Requests(2, 10.0)
    window.take(100.0)
    window.take(5.0)
    window.meter.settle(window.mark, 1, 0, moment(5.0))
    assert window.take(6.0)


def test_a_limit_that_has_become_smaller_waits_for_as_many_to_leave() -> None:
    window = RequestWindow(10.0)
    for now in range(5):
        window.take(1, moment(float(now)))
    assert window.wait_s(1, 2, moment(4.0)) == 9.0
    assert window.left(2) == 0


def test_a_limit_of_nothing_admits_nothing() -> None:
    assert RequestWindow(10.0).wait_s(1, 0, moment(0.0)) == HINT_S


def test_a_window_that_has_become_shorter_keeps_its_order() -> None:
    window = Requests(2, 60.0)
    window.take(0.0)
    window.meter.window_s = 10.0
    window.take(1.0)
    assert not window.take(30.0)
    assert window.take(60.0)


# -- tokens -------------------------------------------------------------------

LIMIT = 1000
# What may happen next: time passes, one asks for so much, an open one ends having used a part of what it reserved.
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 2000)),
        st.tuples(st.just("ask"), st.integers(1, LIMIT + 50)),
        st.tuples(st.just("end"), st.integers(0, 100)),
    ),
    max_size=120,
)


@given(happenings)
def test_no_span_of_the_windows_length_ever_holds_more_tokens_than_the_limit(events: list[tuple[str, int]]) -> None:
    window, now, window_s = TokenWindow(16.0), 1000.0, 16.0
    running, ended = list[tuple[float, int]](), list[tuple[float, int]]()
    for kind, number in events:
        match kind:
            case "pass":
                now += number * INSTANT_S
            case "ask":
                if window.wait_s(number, LIMIT, moment(now)) is None:
                    running.append((window.take(number, moment(now)), number))
            case _ if running:
                mark, reserved = running.pop(number % len(running))
                spent = reserved * number // 100
                window.settle(mark, reserved, spent, moment(now))
                ended.append((now, spent))
    for start, _ in ended:
        assert sum(tokens for at, tokens in ended if start <= at < start + window_s) <= LIMIT


@given(happenings)
def test_what_is_left_is_what_may_be_asked_for(events: list[tuple[str, int]]) -> None:
    window, now = TokenWindow(16.0), 1000.0
    running: list[tuple[float, int]] = []
    for kind, number in events:
        now += number * INSTANT_S if kind == "pass" else 0.0
        if kind == "ask" and window.wait_s(number, LIMIT, moment(now)) is None:
            running.append((window.take(number, moment(now)), number))
        elif kind == "end" and running:
            window.settle(*running.pop(), number, moment(now))
        window.wait_s(1, LIMIT, moment(now))
        left = window.left(LIMIT)
        if left:
            assert window.wait_s(left, LIMIT, moment(now)) is None
        assert window.wait_s(left + 1, LIMIT, moment(now)) is not None


def test_a_reservation_counts_for_as_long_as_it_is_open_and_its_use_for_a_window_from_its_end() -> None:
    window = TokenWindow(60.0)
    mark = window.take(900, moment(0.0))
    assert window.wait_s(200, LIMIT, moment(500.0)) == HINT_S
    window.settle(mark, 900, 300, moment(500.0))
    assert window.left(LIMIT) == 700
    assert window.wait_s(701, LIMIT, moment(559.9)) == pytest.approx(0.1, abs=60 / GRAINS)
    assert window.wait_s(1000, LIMIT, moment(560.0 + 60 / GRAINS)) is None


def test_what_can_never_be_admitted_is_told_apart() -> None:
    assert TokenWindow(60.0).wait_s(LIMIT + 1, LIMIT, moment(0.0)) == NEVER_S
    assert Budget(day_of).wait_s(LIMIT + 1, LIMIT, moment(0.0)) == NEVER_S


def test_more_than_was_reserved_is_counted_all_the_same() -> None:
    window = TokenWindow(60.0)
    window.settle(window.take(10, moment(0.0)), 10, 990, moment(0.0))
    assert window.left(LIMIT) == 10


def test_the_wait_is_until_enough_has_left() -> None:
    window = TokenWindow(64.0)
    for now in (0.0, 1.0, 2.0):
        window.settle(window.take(300, moment(now)), 300, 300, moment(now))
    grain = 64.0 / GRAINS
    assert window.wait_s(100, LIMIT, moment(3.0)) is None
    assert window.wait_s(400, LIMIT, moment(3.0)) == 61.0 + grain
    assert window.wait_s(1000, LIMIT, moment(3.0)) == 63.0 + grain
    assert window.reset_s(moment(3.0)) == 63.0 + grain


def test_memory_of_tokens_is_bounded_and_the_wait_is_found_in_bounded_steps() -> None:
    window = TokenWindow(1.0)
    for step in range(10_000):
        at = moment(step / 4096)
        window.settle(window.take(1, at), 1, 1, at)
        assert len(window._grains) <= GRAINS + 1
    wait_s = window.wait_s(10_000, 10_000, at)
    assert wait_s is not None
    assert 0 < wait_s <= (WALK + 1) / GRAINS


def test_without_anything_open_or_used_there_is_nothing_to_reset() -> None:
    meters: list[Any] = [RequestWindow(1.0), TokenWindow(1.0), InFlight()]
    assert [meter.reset_s(moment(0.0)) for meter in meters] == [0.0] * 3


# -- in flight ----------------------------------------------------------------


def test_as_many_run_as_may() -> None:
    flight = InFlight()
    marks = [flight.take(1, moment(0.0)) for _ in range(2)]
    assert (flight.wait_s(1, 2, moment(0.0)), flight.left(2), flight.left(3)) == (HINT_S, 0, 1)
    flight.settle(marks[0], 1, 1, moment(0.0))
    assert flight.wait_s(1, 2, moment(0.0)) is None


# -- budgets ------------------------------------------------------------------

DAY_S = 86_400.0
# 2026-11-25 at 12:00 UTC.
NOON = 1_795_608_000.0


@pytest.mark.parametrize(("period_of", "left_s"), [(day_of, 12 * 3600.0), (month_of, 5.5 * DAY_S)])
def test_a_budget_is_whole_again_when_the_period_ends(period_of: Callable[[float], Any], left_s: float) -> None:
    budget = Budget(period_of)
    mark = budget.take(600, moment(NOON))
    budget.settle(mark, 600, 500, moment(NOON))
    assert budget.wait_s(501, LIMIT, moment(NOON)) == left_s == budget.reset_s(moment(NOON))
    assert budget.wait_s(500, LIMIT, moment(NOON)) is None
    assert budget.wait_s(501, LIMIT, moment(NOON + left_s - INSTANT_S)) == INSTANT_S
    assert budget.wait_s(LIMIT, LIMIT, moment(NOON + left_s)) is None


def test_a_call_counts_in_the_period_in_which_it_began() -> None:
    budget = Budget(day_of)
    mark = budget.take(600, moment(NOON))
    assert budget.wait_s(LIMIT, LIMIT, moment(NOON + DAY_S)) is None
    budget.settle(mark, 600, 600, moment(NOON + DAY_S))
    assert budget.left(LIMIT) == LIMIT


def test_a_clock_that_steps_back_gives_no_budget_back() -> None:
    budget = Budget(day_of)
    budget.settle(budget.take(900, moment(NOON)), 900, 900, moment(NOON))
    for back_s in (3600.0, DAY_S, 40 * DAY_S):
        assert budget.wait_s(200, LIMIT, moment(NOON - back_s)) is not None
    assert budget.left(LIMIT) == 100


def test_restoring_only_ever_raises() -> None:
    budget = Budget(day_of)
    budget.restore(300, NOON)
    budget.restore(200, NOON)
    assert budget.left(LIMIT) == 700
    budget.settle(budget.take(500, moment(NOON)), 500, 100, moment(NOON))
    budget.restore(350, NOON)
    assert budget.left(LIMIT) == 600
    budget.restore(900, NOON - DAY_S)
    assert budget.left(LIMIT) == 600
    budget.restore(900, NOON + DAY_S)
    assert budget.left(LIMIT) == 100
