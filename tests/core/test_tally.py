"""All limits of a request are asked before any is taken from."""

from hypothesis import given
from hypothesis import strategies as st

from corral.core.limits import Limit, Rules, Scope
from corral.core.meters import Moment
from corral.core.tally import Book, Tally, settle

NOW = Moment(1000.0, 1_795_608_000.0)
VALUES = {
    Limit.REQUESTS: 3,
    Limit.TOKENS: 100,
    Limit.IN_FLIGHT: 2,
    Limit.TOKENS_DAY: 150,
    Limit.TOKENS_MONTH: 200,
}


def book_of(values: dict[Limit, int], *, shadow: frozenset[Limit] = frozenset(), tally: Tally | None = None) -> Book:
    rules = Rules("a", "client:a", (Scope("", tuple(values.items())),), shadow=shadow)
    return Book(rules, [tally or Tally(60.0)])


def lefts(tally: Tally) -> dict[Limit, int]:
    return {limit: tally.meters[limit].left(value) for limit, value in VALUES.items()}


def test_what_is_taken_is_taken_from_all() -> None:
    tally = Tally(60.0)
    verdict, shares = book_of(VALUES, tally=tally).take(40, NOW)
    assert [(standing.limit, standing.left) for standing in verdict.standings] == list(lefts(tally).items())
    assert list(lefts(tally).values()) == [2, 60, 1, 110, 160]
    settle(shares, 10, NOW)
    assert list(lefts(tally).values()) == [2, 90, 2, 140, 190]


def test_a_request_that_did_not_run_leaves_nothing_behind() -> None:
    tally = Tally(60.0)
    _, shares = book_of(VALUES, tally=tally).take(40, NOW)
    settle(shares, 0, NOW, ran=False)
    assert lefts(tally) == VALUES


@given(st.sampled_from(list(VALUES)), st.lists(st.integers(1, 60), max_size=6))
def test_a_refused_request_consumes_nothing_of_any_limit(blocked: Limit, sizes: list[int]) -> None:
    tally = Tally(60.0)
    book = book_of(VALUES, tally=tally)
    for tokens in sizes:
        before = lefts(tally)
        verdict, shares = book.take(tokens, NOW)
        if verdict.refused:
            assert (lefts(tally), shares) == (before, [])
    strict = book_of({**VALUES, blocked: 0}, tally=tally)
    before = lefts(tally)
    verdict, shares = strict.take(1, NOW)
    assert blocked in {standing.limit for standing in verdict.refused}
    assert (lefts(tally), shares) == (before, [])


def test_all_that_refuse_are_told() -> None:
    book = book_of({Limit.REQUESTS: 1, Limit.IN_FLIGHT: 1})
    book.take(0, NOW)
    verdict, _ = book.take(0, NOW)
    assert [(standing.limit, standing.wait_s) for standing in verdict.refused] == [
        (Limit.REQUESTS, 60.0),
        (Limit.IN_FLIGHT, 1.0),
    ]


def test_a_limit_that_only_reports_lets_through_and_counts_what_it_would_have_let_through() -> None:
    tally = Tally(60.0)
    book = book_of({Limit.REQUESTS: 10, Limit.IN_FLIGHT: 1}, shadow=frozenset({Limit.IN_FLIGHT}), tally=tally)
    first, shares = book.take(0, NOW)
    assert not first.shadowed
    for _ in range(3):
        verdict, more = book.take(0, NOW)
        assert [standing.limit for standing in verdict.shadowed] == [Limit.IN_FLIGHT]
        assert [standing.limit for standing in verdict.standings] == [Limit.REQUESTS]
        settle(more, 0, NOW)
    settle(shares, 0, NOW)
    assert not book.take(0, NOW)[0].shadowed
    assert tally.meters[Limit.REQUESTS].left(10) == 5


def test_what_a_limit_that_only_reports_would_refuse_is_not_told_of_a_request_that_is_refused() -> None:
    shadow = frozenset({Limit.IN_FLIGHT})
    book = book_of({Limit.REQUESTS: 1, Limit.IN_FLIGHT: 1}, shadow=shadow)
    book.take(0, NOW)
    verdict, _ = book.take(0, NOW)
    assert [standing.limit for standing in verdict.refused] == [Limit.REQUESTS]
    assert not verdict.shadowed


def test_a_model_has_limits_beside_those_of_all() -> None:
    scopes = (Scope("", ((Limit.REQUESTS, 3),)), Scope("llama", ((Limit.REQUESTS, 1),)))
    whole = Tally(60.0)
    book = Book(Rules("a", "client:a", scopes), [whole, Tally(60.0)])
    book.take(0, NOW)
    verdict, _ = book.take(0, NOW)
    assert [(standing.model, standing.left) for standing in verdict.refused] == [("llama", 0)]
    assert whole.meters[Limit.REQUESTS].left(3) == 2
