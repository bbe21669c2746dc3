"""Label values stay bounded."""

from hypothesis import given
from hypothesis import strategies as st

from corral.observe.labels import LIMIT, NONE, OTHER, Bounded


def test_values_beyond_the_limit_become_other_and_known_ones_stay() -> None:
    bounded = Bounded()
    first = [bounded(f"client-{n}") for n in range(LIMIT)]
    assert first == [f"client-{n}" for n in range(LIMIT)]
    assert {bounded(f"stranger-{n}") for n in range(5000)} == {OTHER}
    assert bounded("client-999") == "client-999"


def test_what_is_absent_is_none_and_takes_no_room() -> None:
    bounded = Bounded(limit=1)
    assert [bounded(""), bounded("a"), bounded(""), bounded("b")] == [NONE, "a", NONE, OTHER]


@given(st.lists(st.text(max_size=3)), st.integers(0, 5))
def test_there_are_never_more_values_than_the_limit_and_the_two_words(values: list[str], limit: int) -> None:
    bounded = Bounded(limit)
    assert len({bounded(value) for value in values} - {NONE, OTHER}) <= limit
