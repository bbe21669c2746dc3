"""The figures of a load test are exact."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from corral.load.plan import Plan
from corral.load.report import Report, Sample, percentile, percentiles, table


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        # The example of the method: 15, 20, 35, 40, 50.
        ([15, 20, 35, 40, 50], 5, 15),
        ([15, 20, 35, 40, 50], 30, 20),
        ([15, 20, 35, 40, 50], 40, 20),
        ([15, 20, 35, 40, 50], 50, 35),
        ([15, 20, 35, 40, 50], 100, 50),
        ([7], 50, 7),
        ([7], 99, 7),
        (list(range(1, 101)), 50, 50),
        (list(range(1, 101)), 90, 90),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 102)), 99, 100),
        ([1, 2], 50, 1),
        ([1, 2], 51, 2),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: int, expected: float) -> None:
    assert percentile(values, percent) == expected


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_of_them_do_not_exceed(values: list[int], percent: int) -> None:
    def share(limit: float) -> Fraction:
        return Fraction(sum(value <= limit for value in values) * 100, len(values))

    found = percentile(sorted(values), percent)

    assert found in values
    assert share(found) >= percent
    assert all(share(value) < percent for value in values if value < found)


def test_what_was_not_measured_has_no_percentiles() -> None:
    assert percentiles([None, None]) is None
    assert percentiles([None, 2.0]) == {50: 2.0, 90: 2.0, 99: 2.0}


def good(total_s: float = 1.0, first_token_s: float = 0.25, last_token_s: float = 0.75, tokens: int = 11) -> Sample:
    return Sample(
        status=200,
        total_s=total_s,
        prompt_tokens=5,
        completion_tokens=tokens,
        first_token_s=first_token_s,
        last_token_s=last_token_s,
    )


def test_the_distance_of_tokens_comes_from_the_usage() -> None:
    assert good(tokens=11).inter_token_s == 0.05


@pytest.mark.parametrize("sample", [Sample(status=200, completion_tokens=9), good(tokens=1), good(tokens=0)])
def test_fewer_than_two_tokens_have_no_distance(sample: Sample) -> None:
    assert sample.inter_token_s is None


def test_rates_and_latencies_are_those_of_the_requests_that_succeeded() -> None:
    failed = Sample(status=429, error="rate_limit_exceeded", total_s=0.001)
    report = Report.of(Plan(requests=3), [good(1.0), failed, good(3.0)], 2.0)

    assert (report.done, report.failed) == (3, 1)
    assert report.requests_per_s == 1.0
    assert report.tokens_per_s == 11.0
    assert report.latencies["total"] == {50: 1.0, 90: 3.0, 99: 3.0}
    assert report.failures == {(429, "rate_limit_exceeded"): 1}
    assert report.statuses == {200: 2, 429: 1}


def test_the_json_has_every_figure_of_the_table() -> None:
    report = Report.of(Plan(requests=2), [good(), Sample(error="connection_refused")], 4.0, interrupted=True)
    shown = json.loads(report.as_json())

    assert shown["requests_per_s"] == 0.25
    assert shown["tokens_per_s"] == 2.75
    assert shown["interrupted"] is True
    assert shown["latency_s"] == {
        "ttft": {"p50": 0.25, "p90": 0.25, "p99": 0.25},
        "inter_token": {"p50": 0.05, "p90": 0.05, "p99": 0.05},
        "total": {"p50": 1.0, "p90": 1.0, "p99": 1.0},
    }
    assert shown["statuses"] == {"0": 1, "200": 1}
    assert shown["errors"] == [{"status": 0, "code": "connection_refused", "count": 1}]


def printed(report: Report) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(report))
    return capture.get()


def test_the_table_shows_rates_latencies_and_errors() -> None:
    failed = Sample(status=503, error="queue_full")
    shown = printed(Report.of(Plan(requests=3), [good(), failed, failed], 2.0))

    assert "3 requests (chat, streaming, 8 at a time) in 2.00 s, 2 failed" in shown
    assert "0.50 requests/s   5.5 tokens/s" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert ["time to first token", "250.0", "250.0", "250.0"] in rows
    assert ["between tokens", "50.0", "50.0", "50.0"] in rows
    assert ["total", "1000.0", "1000.0", "1000.0"] in rows
    assert ["503", "queue_full", "2"] in rows


def test_the_table_of_an_interrupted_run_says_how_far_it_came() -> None:
    shown = printed(Report.of(Plan(requests=40), [], 2.0, interrupted=True))

    assert "interrupted after 0 of 40 requests" in shown
    assert "-" in shown
