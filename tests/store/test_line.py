"""How lines read, also those that no Corral has written."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.store.line import FIELDS, FORMAT, cleaned, decoded, encoded, exchange_line, format_of, head_line
from support.journals import record_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def line_with(**values: Any) -> list[Any]:
    record = record_of(1)
    record.sequence = 1
    (line,), _ = decoded(exchange_line(record, [], None, 110.0))
    for name, value in values.items():
        line[FIELDS.index(name)] = value
    return line


def test_lines_come_back_as_they_were() -> None:
    lines, bad = decoded(encoded([1, [], "ok"]) + encoded([0, [1, [2, "cut", 200, "x"]]]))
    assert lines == [[1, [], "ok"], [0, [1, [2, "cut", 200, "x"]]]]
    assert bad == 0


@given(st.integers(0, 60), st.integers(0, 60))
def test_torn_lines_are_left_out_and_the_others_read(first: int, second: int) -> None:
    whole = encoded([1, ["a", "b]"], 'c"[', [3, [4]]])
    torn = [whole[: first % len(whole)].rstrip(b"\n"), whole[: second % len(whole)].rstrip(b"\n")]
    lines, bad = decoded(b"\n".join([*torn, whole]))
    assert lines[-1] == orjson.loads(whole)
    assert len(lines) + bad == 3


def test_two_halves_are_not_taken_for_one() -> None:
    lines, bad = decoded(b'[1,[],"ok"\n[2,[]],3]\n[4,[],"ok"]\n')
    assert lines == [[4, [], "ok"]]
    assert bad == 2


def test_a_sound_line_stays_as_it_is_when_it_is_cleaned() -> None:
    line = line_with()
    assert cleaned(line) == line
    assert cleaned([0, [1, (2), [3, "cut", 200, None]]]) == [0, [1, 2, (3, "cut", 200, None)]]


@pytest.mark.parametrize(
    ("name", "given_value", "kept"),
    [
        ("client", "a\0b", "ab"),
        ("model", "half \ud800 a pair", "half ? a pair"),
        ("request_id", 7, ""),
        ("prompt_tokens", 10**30, 2**48),
        ("prompt_tokens", -5, 0),
        ("completion_tokens", 1.5, 0),
        ("cached_tokens", None, 0),
        ("status", 10**12, 2**31 - 1),
        ("ttft_s", "soon", 0.0),
        ("ttft_s", None, None),
        ("ended", float("nan"), 0.0),
        ("ended", float("inf"), 0.0),
        ("stream", "yes", True),
    ],
)
def test_what_no_column_takes_is_mended(name: str, given_value: object, kept: object) -> None:
    assert cleaned(line_with(**{name: given_value}))[FIELDS.index(name)] == kept


@given(st.lists(json_values, max_size=len(FIELDS) + 1) | json_values)
def test_whatever_stands_in_a_file_becomes_a_line_or_nothing(line: object) -> None:
    clean = cleaned(line)
    assert clean == [] or len(clean) in (2, len(FIELDS))
    if clean:
        # SQLite and PostgreSQL take such texts.
        orjson.dumps(clean)


@pytest.mark.parametrize("line", [{}, 5, None, [], [1], [1, []] * 3, [1, "closings", *[None] * 21]])
def test_what_is_no_line_is_nothing(line: object) -> None:
    assert cleaned(line) == []


def test_a_file_tells_its_format() -> None:
    assert format_of(head_line("ab" * 8, 1)) == FORMAT
    assert format_of(b'{"format":99}') == 99
    assert format_of(b"[1,[]]") == format_of(b"{torn") == format_of(b"") == 0


def test_names_and_numbers_that_json_hardly_takes_are_written_all_the_same() -> None:
    record = record_of(1, client="half \ud800 a pair")
    record.sequence = 1
    (line,), bad = decoded(exchange_line(record, [], record.outcome, 110.0))
    assert bad == 0
    assert cleaned(line)[FIELDS.index("client")] == "half ? a pair"
