"""Slots of an abandoned call count until /slots has shown them free."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from corral.core.linger import Lingering, Task

OURS, OTHER, LATER = (0, 10), (1, 11), (2, 12)


def lingering(tasks: int = 1, *others: int) -> Lingering:
    return Lingering(tasks, until=100.0, others=frozenset(others))


def look(
    each: Lingering, *processing: Task, started: tuple[int, ...] = (), running: dict[int, int] | None = None
) -> int:
    """Look once; what still counts as busy."""
    each.look(frozenset(processing), frozenset(started), running or {})
    return each.tasks


def test_one_look_frees_nothing_as_the_task_may_not_be_in_a_slot_yet() -> None:
    each = lingering()
    assert look(each) == 1
    assert look(each) == 0


def test_a_task_that_comes_into_its_slot_between_the_looks_is_waited_for() -> None:
    each = lingering()
    assert look(each) == 1
    assert look(each, OURS) == 1
    assert look(each, OURS) == 1
    assert look(each) == 0


def test_a_task_of_another_in_the_same_slot_is_not_ours() -> None:
    each = lingering()
    look(each, OURS)
    look(each, OURS)
    assert look(each, (OURS[0], 99)) == 0


def test_the_task_of_a_lease_that_runs_is_not_taken_for_ours() -> None:
    each = lingering(1, 7)
    look(each, OURS, OTHER, running={7: 1})
    assert look(each, OURS, OTHER, running={7: 1}) == 1
    assert look(each, OTHER, running={7: 1}) == 0


def test_a_lease_that_started_before_the_second_look_is_not_taken_for_ours() -> None:
    each = lingering()
    look(each, OURS)
    look(each, OURS, LATER, started=(8,), running={8: 1})
    assert look(each, LATER, started=(8,), running={8: 1}) == 0


def test_a_lease_that_starts_later_accounts_for_nothing_that_was_seen_before() -> None:
    each = lingering()
    look(each, OURS)
    look(each, OURS)
    assert look(each, OURS, LATER, started=(8,), running={8: 1}) == 1


def test_the_tasks_of_one_call_are_freed_one_by_one() -> None:
    each = lingering(2)
    look(each, OURS, OTHER)
    assert look(each, OURS, OTHER) == 2
    assert look(each, OTHER) == 1
    assert look(each) == 0


@dataclass
class Server:
    """A llama-server whose tasks come and go, and the leases on it."""

    abandoned: set[Task]
    of_leases: dict[int, Task] = field(default_factory=dict)
    next_id: int = 100

    def step(self, action: str) -> None:
        if action == "ours ends" and self.abandoned:
            self.abandoned.pop()
        elif action == "a lease starts":
            self.next_id += 1
            self.of_leases[self.next_id] = (self.next_id, self.next_id)
        elif action == "a lease ends" and self.of_leases:
            self.of_leases.popitem()

    def look(self, each: Lingering) -> None:
        processing = frozenset(self.abandoned) | frozenset(self.of_leases.values())
        each.look(processing, frozenset(self.of_leases), dict.fromkeys(self.of_leases, 1))


actions = st.sampled_from(["ours ends", "a lease starts", "a lease ends", "look"])


@given(st.integers(1, 3), st.integers(0, 2), st.lists(actions, max_size=30))
def test_what_is_at_work_is_never_counted_as_free_and_what_is_over_always_in_the_end(
    tasks: int, leases: int, steps: list[str]
) -> None:
    server = Server({(number, number) for number in range(tasks)})
    for _ in range(leases):
        server.step("a lease starts")
    each = Lingering(tasks, until=100.0, others=frozenset(server.of_leases))
    # Ours are in their slots by now, so that the looks that count are the first ones.
    server.look(each)
    server.look(each)
    for step in steps:
        before = each.tasks
        if step == "look":
            server.look(each)
        else:
            server.step(step)
        assert each.tasks <= before
        assert each.tasks >= len(server.abandoned)
    server.abandoned.clear()
    server.look(each)
    assert each.tasks == 0
