"""Durations and sizes with units."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.config.problems import Mistake
from corral.config.units import LONGEST_S, format_seconds, format_size, seconds, size


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172800),
        ("1.5 H", 5400),
        ("7", 7),
        (7, 7),
        (0.25, 0.25),
        ("0", 0),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_seconds(written: object, meant: float) -> None:
    assert seconds(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        "s",
        "-1s",
        -1,
        "1e3",
        "1 s s",
        "30 seconds",
        "367d",
        "9" * 16,
        math.inf,
        math.nan,
        True,
        None,
        [30],
        "\N{ARABIC-INDIC DIGIT ONE}s",
    ],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(Mistake):
        seconds(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("32MiB", 32 * 2**20),
        ("1 kb", 1000),
        ("1KiB", 1024),
        ("2GiB", 2**31),
        ("1.5MiB", 1572864),
        ("17", 17),
        (17, 17),
        ("0B", 0),
    ],
)
def test_a_size_is_a_number_with_a_unit_or_bytes(written: object, meant: int) -> None:
    assert size(written) == meant


@pytest.mark.parametrize("written", ["", "MiB", "-1", -1, "0.5B", "8M", "8 Mibi", 1.5, True, None])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(Mistake):
        size(written)


@given(st.integers(min_value=0, max_value=int(LONGEST_S * 1000)))
def test_a_formatted_duration_reads_back_as_itself(milliseconds: int) -> None:
    assert seconds(format_seconds(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_a_formatted_size_reads_back_as_itself(count: int) -> None:
    assert size(format_size(count)) == count


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
def test_any_value_is_a_bounded_duration_or_a_mistake(value: object) -> None:
    try:
        found = seconds(value)
    except Mistake:
        return
    assert 0 <= found <= LONGEST_S


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
def test_any_value_is_a_count_of_bytes_or_a_mistake(value: object) -> None:
    try:
        found = size(value)
    except Mistake:
        return
    assert found >= 0
