"""What one Corral believes of a llama-server that others use too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.holding import Answer, Ask, Holding, Stage

SLOTS = 4


def there(corrals: int | None = None) -> Holding:
    """One whose book is there, and knows of nothing held."""
    holding = Holding(corrals)
    holding.resume()
    answer(holding, Answer(0, 0, 0, version=1))
    return holding


def answer(holding: Holding, said: Answer, busy: int = 0) -> Ask:
    ask = holding.ask(busy, SLOTS)
    holding.answered(ask, said)
    return ask


def asks(holding: Holding) -> list[None]:
    """As often as it has had something to tell since."""
    told: list[None] = []
    holding.on_stale = lambda: told.append(None)
    return told


def test_nothing_is_taken_before_it_is_known_which_book_it_is() -> None:
    holding = Holding(corrals=2)
    assert (holding.stage, holding.usable(SLOTS), holding.free(SLOTS, 0)) == (Stage.STATING, SLOTS, 0)


def test_what_has_been_granted_may_be_taken_and_no_more() -> None:
    holding = there()
    holding.want((1, 2, 1), busy=0)
    assert not holding.lets(1)
    assert answer(holding, Answer(2, 1, 0, version=2)).tasks == (1, 2, 1)
    assert holding.lets(3)
    holding.take(1)
    holding.take(2)
    assert not holding.lets(1)
    # Another one holds the fourth.
    assert holding.free(SLOTS, 3) == 0


def test_what_is_granted_can_be_had_although_others_stand_in_line() -> None:
    holding = there()
    holding.want((1,), busy=0)
    answer(holding, Answer(1, 0, 4, version=2))
    assert holding.free(SLOTS, 0) == 1


def test_a_question_gives_back_what_is_spare() -> None:
    holding = there()
    holding.want((2,), busy=0)
    answer(holding, Answer(1, 0, 0, version=2))
    told = asks(holding)
    holding.want((), busy=0)
    assert told
    assert holding.ask(0, SLOTS) == Ask(SLOTS, 0, ())
    assert not holding.lets(1)


def test_who_was_refused_does_not_ask_again_until_there_may_be_room() -> None:
    holding = there()
    holding.want((2,), busy=0)
    answer(holding, Answer(0, 3, 0, version=10))
    told = asks(holding)
    holding.want((2,), busy=0)
    assert holding.told(3, version=11)
    holding.look(0)
    assert not told
    assert holding.told(2, version=12)
    holding.look(0)
    assert told


def test_an_older_message_says_nothing_new() -> None:
    holding = there()
    answer(holding, Answer(0, 3, 0, version=10))
    assert not holding.told(0, version=9)
    assert holding.elsewhere == 3


def test_a_message_that_comes_before_an_older_answer_counts() -> None:
    holding = there()
    holding.want((1,), busy=1)
    ask = holding.ask(1, SLOTS)
    assert not holding.told(2, version=12)
    holding.answered(ask, Answer(1, 3, 0, version=11))
    # Two of all, which are ours.
    assert holding.elsewhere == 0


def test_a_clock_that_was_set_back_does_not_make_it_ask_for_ever() -> None:
    holding = there()
    assert holding.told(3, version=1000)
    holding.want((2,), busy=0)
    answer(holding, Answer(0, 3, 0, version=5))
    answer(holding, Answer(0, 3, 0, version=6))
    told = asks(holding)
    holding.look(0)
    assert not told


@pytest.mark.parametrize(("corrals", "usable"), [(None, 0), (1, 4), (2, 2), (3, 1), (5, 0)])
def test_away_there_is_a_share(corrals: int | None, usable: int) -> None:
    holding = there(corrals)
    answer(holding, Answer(0, 3, 0, version=2))
    holding.lose()
    assert holding.usable(SLOTS) == holding.free(SLOTS, 0) == usable
    assert holding.free(SLOTS, 4) == 0
    told = asks(holding)
    holding.look(1)
    assert not told


def test_when_the_book_is_back_what_is_held_is_stated_before_anything_is_asked_for() -> None:
    holding = there(corrals=2)
    holding.lose()
    told = asks(holding)
    holding.want((1,), busy=2)
    assert not told
    holding.state()
    assert len(told) == 1
    assert answer(holding, Answer(0, 0, 0, version=2), busy=2).tasks == ()
    holding.look(2)
    assert len(told) == 1
    holding.resume()
    assert holding.ask(2, SLOTS) == Ask(SLOTS, 2, (1,))


@given(
    st.lists(
        st.tuples(st.sampled_from(["answer", "told", "lose", "state", "resume", "take", "fail"]), st.integers(0, 4))
    )
)
def test_spare_is_never_more_than_was_granted_last(steps: list[tuple[str, int]]) -> None:
    holding = there()
    granted = 0
    for number, (step, figure) in enumerate(steps, 2):
        match step:
            case "answer":
                holding.want((1,) * 4, busy=0)
                answer(holding, Answer(figure, 0, 0, version=number))
                granted = figure if holding.stage is Stage.THERE else 0
            case "told":
                holding.told(figure, version=number)
            case "lose":
                holding.lose()
                granted = 0
            case "state":
                holding.state()
                granted = 0
            case "resume":
                holding.resume()
            case "take" if holding.spare:
                holding.take(1)
                granted -= 1
            case "fail":
                holding.ask(0, SLOTS)
                holding.unanswered()
                granted = 0
        assert holding.spare == granted
        assert 0 <= holding.free(SLOTS, 0) <= SLOTS
