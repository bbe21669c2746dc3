"""A call of many inputs is cut so that others find room beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.parts import part_inputs, part_ranges


@pytest.mark.parametrize(
    ("inputs", "n", "slots", "size"),
    [
        (1, 1, 4, 1),
        (4, 1, 4, 4),
        (2, 2, 4, 2),
        (5, 1, 4, 2),
        (64, 1, 2, 1),
        (64, 1, 1, 1),
        (64, 1, 5, 2),
        (3, 2, 4, 1),
        # No part can have less than one input, also where none fits: the pool refuses it.
        (2, 4, 2, 1),
        (1, 4, 2, 1),
        # No replica is ready: nobody knows how many slots there will be.
        (1, 1, 0, 1),
        (64, 1, 0, 1),
    ],
)
def test_a_part_is_all_that_fits_or_half_of_the_slots(inputs: int, n: int, slots: int, size: int) -> None:
    assert part_inputs(inputs, n, slots) == size


@given(st.integers(1, 300), st.integers(1, 8), st.integers(2, 32))
def test_two_parts_of_a_call_that_is_cut_fit_into_the_slots(inputs: int, n: int, slots: int) -> None:
    size = part_inputs(inputs, n, slots)
    if size < inputs and 2 * n <= slots:
        assert 2 * size * n <= slots


@given(st.integers(1, 300), st.integers(1, 40))
def test_the_parts_are_all_inputs_in_order(inputs: int, size: int) -> None:
    parts = part_ranges(inputs, size)
    assert [number for part in parts for number in part] == list(range(inputs))
    assert all(0 < len(part) <= size for part in parts)
