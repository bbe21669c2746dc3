"""Percentiles out of sketches."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.sketch import ACCURACY, LEAST_S, MOST_S, Sketch

times = st.lists(st.floats(min_value=LEAST_S, max_value=MOST_S), min_size=1, max_size=200)
shares = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])


def sketch_of(*seconds: float) -> Sketch:
    sketch = Sketch()
    for each in seconds:
        sketch.add(each)
    return sketch


@given(times, shares)
def test_a_percentile_is_off_by_two_percent_of_itself_at_most(seconds: list[float], share: float) -> None:
    exact = sorted(seconds)[math.floor(share * (len(seconds) - 1))]
    told = sketch_of(*seconds).quantile(share)
    assert told == pytest.approx(exact, rel=ACCURACY * 1.001)


@given(times, times)
def test_sketches_that_are_added_up_are_the_sketch_of_all(left: list[float], right: list[float]) -> None:
    merged = sketch_of(*left)
    merged.merge(sketch_of(*right))
    assert merged == sketch_of(*left, *right)


@given(times, times)
def test_what_was_counted_can_be_taken_back(kept: list[float], gone: list[float]) -> None:
    sketch = sketch_of(*kept, *gone)
    for each in gone:
        sketch.add(each, -1)
    assert sketch.packed() == sketch_of(*kept).packed()


@given(times)
def test_the_store_gives_back_what_it_got(seconds: list[float]) -> None:
    sketch = sketch_of(*seconds)
    assert Sketch.unpacked(sketch.packed()) == sketch


@pytest.mark.parametrize(("seconds", "told"), [(0.0, LEAST_S), (-1.0, LEAST_S), (1e300, MOST_S)])
def test_what_is_too_short_or_too_long_counts_as_the_shortest_or_longest(seconds: float, told: float) -> None:
    assert sketch_of(seconds).quantile(0.5) == pytest.approx(told, rel=ACCURACY * 1.001)


def test_nothing_has_no_percentiles() -> None:
    assert Sketch().quantile(0.5) is None
    assert Sketch().packed() == b""
