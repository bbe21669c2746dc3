"""Which replica takes a call."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.balance import HOLD_LIMIT_S, Balance, Candidate, choose, hold_s

IDLE = Candidate("idle", busy=0, load=0.25, turn=5.0, uncached=1000)
BUSY = Candidate("busy", busy=3, load=1.0, turn=1.0, uncached=1000)
CANDIDATES = st.builds(
    Candidate,
    name=st.sampled_from("abcdef"),
    busy=st.integers(0, 8),
    load=st.floats(0, 1),
    turn=st.floats(0, 100),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    uncached=st.floats(0, 10_000),
    lot=st.floats(0, 1),
)
SEVERAL = st.lists(CANDIDATES, min_size=1, max_size=6, unique_by=lambda each: each.name)


def chosen(balance: Balance, *candidates: Candidate, key: str = "") -> str:
    return candidates[choose(balance, candidates, key)].name


def test_who_has_the_prompt_takes_the_call_unless_it_is_so_busy_that_reading_it_elsewhere_costs_less() -> None:
    assert chosen(Balance.PREFIX, IDLE, BUSY._replace(uncached=200)) == "busy"
    assert chosen(Balance.PREFIX, IDLE, BUSY._replace(uncached=400)) == "idle"


@pytest.mark.parametrize("balance", [Balance.PREFIX, Balance.LEAST_BUSY])
def test_among_equals_the_less_busy_then_the_one_whose_turn_it_is_then_the_lot(balance: Balance) -> None:
    one = Candidate("one", busy=1, load=0.5, turn=3.0, lot=0.5)
    assert chosen(balance, one, one._replace(name="other", load=0.25)) == "other"
    assert chosen(balance, one, one._replace(name="other", turn=2.0)) == "other"
    assert chosen(balance, one, one._replace(name="other", lot=0.1)) == "other"
    assert chosen(balance, one, one._replace(name="other", lot=0.9)) == "one"


def test_least_busy_does_not_care_for_caches() -> None:
    assert chosen(Balance.LEAST_BUSY, IDLE, BUSY._replace(uncached=0)) == "idle"


def test_round_robin_cares_for_turns_only() -> None:
    assert chosen(Balance.ROUND_ROBIN, IDLE, BUSY) == "busy"


def test_a_replica_of_more_weight_may_be_busier() -> None:
    assert chosen(Balance.LEAST_BUSY, IDLE, BUSY._replace(weight=5.0)) == "busy"
    assert chosen(Balance.PREFIX, IDLE, BUSY._replace(weight=5.0)) == "busy"


@given(st.text(max_size=20), SEVERAL)
def test_sticky_is_the_same_whatever_else_changes(key: str, candidates: list[Candidate]) -> None:
    first = chosen(Balance.STICKY, *candidates, key=key)
    others = [each._replace(busy=each.busy + 1, turn=0.0, lot=0.0) for each in reversed(candidates)]
    assert chosen(Balance.STICKY, *others, key=key) == first
    # When a replica goes that did not serve the key, nothing changes.
    left = [each for each in candidates if each.name == first or each.name > "c"]
    assert chosen(Balance.STICKY, *left, key=key) == first


def test_sticky_spreads_keys_by_weight() -> None:
    candidates = [Candidate("light", 0, 0, 0), Candidate("heavy", 0, 0, 0, weight=3.0)]
    counts = Counter(chosen(Balance.STICKY, *candidates, key=f"client-{number}") for number in range(2000))
    assert 0.7 < counts["heavy"] / 2000 < 0.8


@given(st.sampled_from(Balance), SEVERAL)
def test_no_replica_is_preferred_for_its_place_in_the_list(balance: Balance, candidates: list[Candidate]) -> None:
    lots = [each._replace(lot=number / 10) for number, each in enumerate(candidates)]
    assert chosen(balance, *lots, key="k") == chosen(balance, *reversed(lots), key="k")


@given(SEVERAL)
def test_prefix_takes_none_that_another_beats_in_everything(candidates: list[Candidate]) -> None:
    taken = candidates[choose(Balance.PREFIX, candidates)]
    for each in candidates:
        better = (each.uncached, each.busy, -each.weight) < (taken.uncached, taken.busy, -taken.weight)
        assert not (
            better and each.uncached < taken.uncached and each.busy < taken.busy and each.weight >= taken.weight
        )


@pytest.mark.parametrize(
    ("saved", "read_per_s", "held_s", "slots", "waits_s"),
    [
        # A second of reading is saved, and a slot becomes free every half second.
        (1000, 1000, 1.0, 2, 1.0),
        # It takes longer than it saves.
        (1000, 1000, 4.0, 2, 0.0),
        # However much is saved, nobody waits for ever.
        (10**9, 1000, 1.0, 1, HOLD_LIMIT_S),
        # Nothing is known yet.
        (1000, 0.0, 1.0, 1, 0.0),
        (1000, 1000, 0.0, 1, 0.0),
        (0, 1000, 1.0, 1, 0.0),
    ],
)
def test_a_busy_replica_is_waited_for_when_that_saves_more_than_it_takes(
    saved: float, read_per_s: float, held_s: float, slots: int, waits_s: float
) -> None:
    assert hold_s(saved, read_per_s, held_s, slots) == waits_s
