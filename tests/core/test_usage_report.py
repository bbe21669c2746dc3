"""Sums over hours, days and months; moments; prices."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.price import Price
from corral.core.sketch import Sketch
from corral.core.usage_report import (
    By,
    Every,
    HourSum,
    Question,
    Report,
    moment,
    next_period,
    period_start,
    period_text,
    told,
)

NOW = datetime(2026, 11, 25, 17, 30, tzinfo=UTC).timestamp()


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def hour(start: str, client: str = "ann", outcome: str = "ok", requests: int = 1, tokens: int = 10) -> HourSum:
    sketch = Sketch()
    sketch.add(0.5, requests)
    return HourSum(at(start), client, "", "llama", outcome, requests, tokens, 1, tokens, 2.0, 0.25, sketch.packed())


def test_hours_become_sums_by_name_and_period() -> None:
    report = Report(Question(0, NOW, By.CLIENT, Every.DAY))
    report.add([hour("2026-11-24 23:00"), hour("2026-11-25 00:00"), hour("2026-11-25 01:00", outcome="cut")])
    report.add([hour("2026-11-25 01:00", "bob", tokens=99), hour("2026-11-25 02:00", "gone", requests=0)])
    sums = report.sums()
    assert [(each.period, each.name, each.requests) for each in sums] == [
        (at("2026-11-24"), "ann", 1),
        (at("2026-11-25"), "bob", 1),
        (at("2026-11-25"), "ann", 2),
    ]
    assert sums[2].outcomes == {"ok": 1, "cut": 1}
    assert (sums[2].total_tokens, sums[2].cached_tokens, sums[2].slot_s, sums[2].cost) == (40, 2, 4.0, 0.5)


def test_a_sum_is_told_by_names_that_programs_know() -> None:
    question = Question(0, NOW, By.MODEL, Every.MONTH)
    report = Report(question)
    report.add([hour("2026-11-24 23:00"), hour("2026-11-01 00:00")])
    (line,) = (told(each, question) for each in report.sums())
    assert line["period"] == "2026-11"
    assert line["model"] == "llama"
    assert line["total_tokens"] == 40
    assert line["time_to_first_token"]["p99"] == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("12h", NOW - 12 * 3600),
        ("7d", NOW - 7 * 86400),
        ("2w", NOW - 14 * 86400),
        ("2026-11-25", at("2026-11-25")),
        ("2026-11", at("2026-11-01")),
        ("2026-11-25T09", at("2026-11-25 09:00")),
    ],
)
def test_moments(text: str, when: float) -> None:
    assert moment(text, NOW) == when


@pytest.mark.parametrize("text", ["", "yesterday", "7", "d", "-1d", "2026-13", "2026-11-31", "9999999d"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="2026-11-25"):
        moment(text, NOW)


@given(st.integers(0, 4 * 10**9), st.sampled_from(Every))
def test_periods_follow_one_another_without_a_gap(when: int, every: Every) -> None:
    start = period_start(when, every)
    assert start <= when < next_period(start, every)
    assert period_start(next_period(start, every), every) == next_period(start, every)
    assert period_start(next_period(start, every) - 1, every) == start


def test_periods_as_people_write_them() -> None:
    assert [period_text(at("2026-11-01"), every) for every in Every] == ["2026-11-01 00:00", "2026-11-01", "2026-11"]


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (Price(), 0.0),
        (Price(prompt=2.0), 2.0),
        (Price(prompt=2.0, cached=0.5), 1.4),
        (Price(completion=4.0), 2.0),
        (Price(1.0, 0.0, 1.0), 1.1),
    ],
)
def test_prices_are_of_a_million_tokens(price: Price, cost: float) -> None:
    assert price.of(1_000_000, 400_000, 500_000) == pytest.approx(cost)
