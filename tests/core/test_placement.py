"""What has to stop so that a model may start: examples, and what is promised of every case."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.placement import Hold, Never, Resident, Start, Stop, Wait, Wanted, must_be_apart, place, surplus

NEW = Wanted("new", 4)
A, B, C = Resident("a", 4, 1.0), Resident("b", 4, 2.0), Resident("c", 4, 3.0)


def held(resident: Resident, hold: Hold) -> Resident:
    return replace(resident, hold=hold)


def test_what_fits_starts() -> None:
    assert place(NEW, [A, B], 12) == Start()


def test_without_a_budget_everything_fits() -> None:
    assert place(NEW, [A, B, C], None) == Start()


def test_the_one_that_was_used_longest_ago_goes_first() -> None:
    assert place(NEW, [C, A, B], 12) == Stop(("a",))


def test_as_many_go_as_are_needed() -> None:
    assert place(Wanted("new", 8), [A, B, C], 12) == Stop(("a", "b"))


def test_a_small_one_stays_when_a_large_one_has_to_go_anyway() -> None:
    assert place(NEW, [Resident("small", 1, 0.0), B, C], 9) == Stop(("b",))


@pytest.mark.parametrize("hold", [Hold.BUSY, Hold.LOADING, Hold.REQUESTED])
def test_what_is_held_stays_and_another_goes(hold: Hold) -> None:
    assert place(NEW, [held(A, hold), B, C], 12) == Stop(("b",))


@pytest.mark.parametrize("hold", [Hold.BUSY, Hold.LOADING, Hold.REQUESTED])
def test_when_all_are_held_it_waits_for_the_one_that_was_used_longest_ago(hold: Hold) -> None:
    assert place(NEW, [held(B, hold), held(A, hold)], 8) == Wait(("a",))


def test_nothing_is_stopped_in_vain() -> None:
    decision = place(Wanted("new", 8), [A, held(B, Hold.BUSY), held(C, Hold.PINNED)], 12)
    assert decision == Wait(("a", "b"))


def test_what_is_leaving_is_waited_for_before_anything_else_is_stopped() -> None:
    assert place(NEW, [held(B, Hold.LEAVING), A], 8) == Wait(())


def test_what_is_leaving_is_not_waited_for_when_there_is_room() -> None:
    assert place(NEW, [held(A, Hold.LEAVING)], 8) == Start()


def test_what_is_larger_than_the_budget_can_never_start() -> None:
    assert place(NEW, [A], 3) == Never((), 0)


def test_what_does_not_fit_beside_the_pinned_can_never_start() -> None:
    assert place(NEW, [held(A, Hold.PINNED), held(B, Hold.PINNED), C], 11) == Never(("a", "b"), 8)


def test_of_a_group_one_is_loaded_at_a_time() -> None:
    wanted = replace(NEW, group="g")
    assert place(wanted, [replace(A, group="g"), B], None) == Stop(("a",))
    assert place(wanted, [replace(A, group="h"), B], None) == Start()


def test_an_exclusive_model_is_loaded_alone() -> None:
    assert place(replace(NEW, exclusive=True), [A, B], None) == Stop(("a", "b"))
    assert place(NEW, [replace(A, exclusive=True)], None) == Stop(("a",))


def test_what_may_not_be_beside_a_busy_one_waits_for_it() -> None:
    assert place(replace(NEW, exclusive=True), [A, held(B, Hold.BUSY)], None) == Wait(("a", "b"))


def test_what_may_not_be_beside_a_pinned_one_can_never_start() -> None:
    assert place(replace(NEW, exclusive=True), [held(A, Hold.PINNED)], None) == Never(("a",), 4, apart=True)


def test_growth_beyond_the_budget_stops_idle_ones() -> None:
    assert surplus([A, B, C], 12) == ()
    assert surplus([A, B, C], 9) == ("a",)
    assert surplus([held(A, Hold.BUSY), B, C], 7) == ("b", "c")
    assert surplus([held(A, Hold.BUSY)], 1) == ()
    assert surplus([held(A, Hold.LEAVING), B], 4) == ()
    assert surplus([A], None) == ()


groups = st.sampled_from([None, None, "g", "h"])
residents = st.lists(
    st.builds(
        Resident,
        name=st.text("abcdefgh", min_size=1, max_size=3),
        bytes=st.integers(0, 8),
        used_at=st.floats(0, 10),
        hold=st.sampled_from([None, None, *Hold]),
        group=groups,
        exclusive=st.sampled_from([False, False, False, True]),
    ),
    max_size=6,
    unique_by=lambda each: each.name,
)
wanted_models = st.builds(
    Wanted, st.just("new"), st.integers(1, 12), groups, st.sampled_from([False, False, False, True])
)
budgets = st.one_of(st.none(), st.integers(1, 24))


def fits(wanted: Wanted, there: list[Resident], budget: int | None) -> bool:
    """Whether it can be loaded beside these, as they stand."""
    apart = any(must_be_apart(wanted, each) for each in there)
    return not apart and (budget is None or wanted.bytes + sum(each.bytes for each in there) <= budget)


def without(there: list[Resident], names: tuple[str, ...]) -> list[Resident]:
    return [each for each in there if each.name not in names and each.hold is not Hold.LEAVING]


@given(wanted_models, residents, budgets)
def test_a_start_never_exceeds_the_budget_nor_joins_what_must_be_apart(
    wanted: Wanted, there: list[Resident], budget: int | None
) -> None:
    assert isinstance(place(wanted, there, budget), Start) == fits(wanted, there, budget)


@given(wanted_models, residents, budgets)
def test_only_idle_ones_are_stopped_and_it_fits_when_they_are_gone_and_none_is_stopped_in_vain(
    wanted: Wanted, there: list[Resident], budget: int | None
) -> None:
    decision = place(wanted, there, budget)
    if not isinstance(decision, Stop):
        return
    by_name = {each.name: each for each in there}
    assert decision.names
    assert all(by_name[name].hold is None for name in decision.names)
    assert fits(wanted, without(there, decision.names), budget)
    for name in decision.names:
        assert not fits(wanted, without(there, tuple(other for other in decision.names if other != name)), budget)


@given(wanted_models, residents, budgets)
def test_whoever_waits_could_start_if_those_it_waits_for_were_gone(
    wanted: Wanted, there: list[Resident], budget: int | None
) -> None:
    decision = place(wanted, there, budget)
    if isinstance(decision, Wait):
        assert fits(wanted, without(there, decision.names), budget)
        assert not {each.name for each in there if each.hold is Hold.PINNED} & set(decision.names)


@given(wanted_models, residents, budgets)
def test_never_is_said_of_what_does_not_fit_beside_the_pinned_and_of_nothing_else(
    wanted: Wanted, there: list[Resident], budget: int | None
) -> None:
    pinned = [each for each in there if each.hold is Hold.PINNED]
    assert isinstance(place(wanted, there, budget), Never) == (not fits(wanted, pinned, budget))


@given(residents, budgets)
def test_growth_stops_no_more_than_is_needed(there: list[Resident], budget: int | None) -> None:
    stopped = surplus(there, budget)
    by_name = {each.name: each for each in there}
    assert all(by_name[name].hold is None for name in stopped)
    left = sum(each.bytes for each in without(there, stopped))
    if budget is not None and left > budget:
        assert all(each.hold is not None for each in without(there, stopped))
    for name in stopped:
        assert budget is not None
        assert left + by_name[name].bytes > budget or left > budget
