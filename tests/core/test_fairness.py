"""Who is next: what is promised of the order, whatever comes in whatever order."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.fairness import FIRST_COST, FORGET_S, SWEEP_ACCOUNTS, Account, FairQueue, Place, cost_of
from corral.core.principal import Principal, Priority
from corral.core.usage import Usage

LIFT_S = 30.0
INTERACTIVE = Principal("chat", priority=Priority.INTERACTIVE)
DEFAULT = Principal("app")
OTHER = Principal("other")
BATCH = Principal("nightly", priority=Priority.BATCH)


class Line:
    """A queue in front of one server: calls come, run one after the other, and take what they take."""

    def __init__(self, *, lift_s: float = LIFT_S) -> None:
        self.queue: FairQueue[str] = FairQueue()
        self.lift_s = lift_s
        self.now = 0.0

    def come(self, principal: Principal, who: str = "") -> Place[str]:
        return self.queue.join(self.queue.account(principal), who or principal.client, self.now)

    def order(self) -> list[str]:
        return [place.who for place in self.queue.in_turn(self.now, self.lift_s)]

    def begin(self) -> "Running":
        """The first starts."""
        place = next(self.queue.in_turn(self.now, self.lift_s))
        self.queue.leave(place)
        return Running(self.queue, place.account, self.queue.start(place.account, 1, self.now), place.who)

    def serve(self, tokens: int = 100) -> str:
        """The first starts and ends."""
        running = self.begin()
        running.end(tokens)
        return running.who


class Running:
    """A call that has started."""

    def __init__(self, queue: FairQueue[str], account: Account[str], charged: float, who: str) -> None:
        self.queue, self.account, self.charged, self.who = queue, account, charged, who

    def end(self, tokens: int) -> None:
        self.queue.settle(self.account, self.charged, 1, Usage(prompt_tokens=tokens))


def test_the_calls_of_one_client_are_served_as_they_came() -> None:
    line = Line()
    for number in range(5):
        line.come(DEFAULT, str(number))
    assert line.order() == ["0", "1", "2", "3", "4"]
    assert [line.serve() for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert len(line.queue) == 0


def test_higher_classes_go_first() -> None:
    line = Line()
    for principal in (BATCH, DEFAULT, INTERACTIVE):
        line.come(principal)
    assert line.order() == ["chat", "app", "nightly"]
    assert [line.queue.waiting(priority) for priority in Priority] == [1, 1, 1]


def test_two_clients_of_a_class_take_turns() -> None:
    line = Line()
    for principal in (DEFAULT, OTHER):
        for _ in range(3):
            line.come(principal)
    assert [line.serve() for _ in range(6)] == ["app", "other"] * 3


def test_who_asks_now_and_then_does_not_stand_behind_a_flood() -> None:
    line = Line()
    for _ in range(50):
        line.come(DEFAULT)
    for _ in range(5):
        running = line.begin()
        line.come(OTHER)
        running.end(1000)
        assert line.serve(10) == "other"


def test_a_client_that_was_away_has_saved_up_nothing() -> None:
    line = Line()
    line.come(OTHER)
    line.serve(10)
    for _ in range(50):
        line.come(DEFAULT)
        line.serve(1000)
    for _ in range(10):
        line.come(DEFAULT)
        line.come(OTHER)
    served = [line.serve(1000) for _ in range(10)]
    assert served.count("other") in (5, 6)


def test_what_a_call_took_is_settled_when_it_ends() -> None:
    line = Line()
    for _ in range(8):
        line.come(DEFAULT)
        line.come(OTHER)
    # The one asks ten times as much as the other.
    served = deque(line.serve(1000 if line.order()[0] == "app" else 100) for _ in range(9))
    assert served.count("other") > 2 * served.count("app")


def test_another_weight_counts_also_for_a_client_that_always_waits() -> None:
    line = Line()
    for _ in range(60):
        line.come(DEFAULT)
        line.come(OTHER)
    line.come(Principal(DEFAULT.client, weight=2.0))
    served = [line.serve() for _ in range(60)]
    assert served.count(DEFAULT.client) == pytest.approx(40, abs=2)


def test_clients_that_do_not_come_back_are_forgotten() -> None:
    line = Line()
    for number in range(1000):
        line.come(Principal(f"{number}"))
        line.serve()
        line.now += 60.0
    assert len(line.queue._bands[Priority.DEFAULT].accounts) <= 2 * SWEEP_ACCOUNTS


def test_who_waits_or_was_here_lately_is_not_forgotten() -> None:
    line = Line(lift_s=10 * FORGET_S)
    line.come(BATCH)
    line.now += FORGET_S
    line.come(OTHER)
    line.serve(tokens=10_000)
    line.now += FORGET_S / 2
    for number in range(1000):
        line.come(Principal(f"{number}"))
        line.serve()
    for principal in (OTHER, DEFAULT):
        line.come(principal)
    assert line.order() == ["app", "other", "nightly"]
    assert [line.queue.account(each).served > 0 for each in (OTHER, BATCH)] == [True, False]
    assert len(line.queue) == 3
    assert [line.serve() for _ in range(3)] == ["app", "other", "nightly"]


def test_a_client_of_twice_the_weight_gets_twice_as_much() -> None:
    line = Line()
    heavy = Principal("heavy", weight=2.0)
    for _ in range(60):
        line.come(DEFAULT)
        line.come(heavy)
    served = [line.serve(100) for _ in range(60)]
    assert served.count("heavy") == pytest.approx(40, abs=2)


def test_a_call_that_never_ran_costs_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    account = queue.account(DEFAULT)
    charged = queue.start(account, 3, 0.0)
    assert (charged, account.served) == (3 * FIRST_COST, 3 * FIRST_COST)
    queue.settle(account, charged, 3, Usage())
    assert (account.served, account.task_cost) == (0.0, FIRST_COST)


def test_the_cached_part_of_a_prompt_is_free_and_output_counts_twice() -> None:
    assert cost_of(Usage(prompt_tokens=100, cached_tokens=80, completion_tokens=10)) == 40
    # llama-server could count in a way that we do not know.
    assert cost_of(Usage(prompt_tokens=1, cached_tokens=2)) == 0


def test_a_client_that_was_passed_over_for_too_long_goes_before_the_higher_classes_once() -> None:
    line = Line()
    line.come(BATCH)
    line.come(BATCH)
    for _ in range(4):
        line.come(INTERACTIVE)
    line.now = LIFT_S - 1
    assert line.serve() == "chat"
    line.now = LIFT_S
    assert [line.serve(), line.serve()] == ["nightly", "chat"]
    # Its client has got something: the next one waits as long again.
    line.now = 2 * LIFT_S - 1
    assert line.serve() == "chat"
    line.now = 2 * LIFT_S
    assert line.serve() == "nightly"


def test_many_who_were_passed_over_leave_every_second_turn_to_the_higher_classes() -> None:
    line = Line()
    for number in range(6):
        line.come(Principal(f"batch-{number}", priority=Priority.BATCH), "batch")
        line.come(INTERACTIVE)
    line.now = LIFT_S
    assert [line.serve() for _ in range(6)] == ["batch", "chat"] * 3


def test_who_leaves_is_gone_at_once_and_leaving_twice_is_leaving_once() -> None:
    line = Line()
    first, second = line.come(DEFAULT, "first"), line.come(DEFAULT, "second")
    assert line.queue.leave(first)
    assert not line.queue.leave(first)
    assert line.order() == ["second"]
    assert line.queue.leave(second)
    assert (len(line.queue), line.order(), line.queue.waiting(Priority.DEFAULT)) == (0, [], 0)


SLOTS = st.integers(1, 4)
COSTS = st.integers(1, 1000)
WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 4.0])


@given(SLOTS, st.lists(st.tuples(COSTS, COSTS, st.integers(0, 9)), min_size=1, max_size=120), WEIGHTS, WEIGHTS)
def test_two_backlogged_clients_are_never_served_further_apart_than_the_bound(
    slots: int, calls: list[tuple[int, int, int]], one_weight: float, other_weight: float
) -> None:
    one, other = Principal("one", weight=one_weight), Principal("other", weight=other_weight)
    line = Line()
    for _ in calls:
        line.come(one)
        line.come(other)
    running: list[Running] = []
    served = {"one": 0.0, "other": 0.0}
    for one_cost, other_cost, ends in calls:
        if len(running) == slots:
            ended = running.pop(ends % slots)
            cost = one_cost if ended.who == "one" else other_cost
            ended.end(cost)
            served[ended.who] += cost / ended.account.weight
        running.append(line.begin())
        # A call may take as much as the dearest, or as the first guess.
        dearest = max(FIRST_COST, *(cost for call in calls for cost in call[:2])) / min(one_weight, other_weight)
        # Those who run have not been counted yet, and each may count.
        assert abs(served["one"] - served["other"]) <= (2 * slots + 1) * dearest
        accounts = [line.queue.account(each) for each in (one, other)]
        assert abs(accounts[0].served - accounts[1].served) <= (slots + 1) * dearest


MANY = [
    Principal(f"{priority.label}-{number}", priority=priority, weight=weight)
    for priority in Priority
    for number, weight in enumerate((1.0, 3.0))
]


@given(st.lists(st.tuples(st.sampled_from(MANY), COSTS, st.integers(0, 3)), max_size=200))
def test_nobody_starves(steps: list[tuple[Principal, int, int]]) -> None:
    """Whoever is due to be lifted is started after at most twice as many others as there are clients."""
    line = Line(lift_s=5.0)
    due: dict[str, int] = {}
    for principal, cost, arrivals in steps:
        line.now += 1.0
        for _ in range(arrivals):
            line.come(principal)
        line.come(INTERACTIVE)
        waiting = {place.account.client: place.account for place in line.queue.in_turn(line.now, line.lift_s)}
        served = line.begin()
        served.end(cost)
        for client, account in waiting.items():
            lower = account.priority is not Priority.INTERACTIVE
            overdue = lower and client != served.account.client and line.now - account.unserved_since >= 5.0
            due[client] = due.get(client, 0) + 1 if overdue else 0
            assert due[client] <= 2 * len(MANY)


@given(st.lists(st.tuples(st.sampled_from(MANY), st.sampled_from(["come", "leave", "serve"])), max_size=100))
def test_the_queue_holds_exactly_those_who_came_and_have_not_gone(steps: list[tuple[Principal, str]]) -> None:
    line = Line()
    there: list[Place[str]] = []
    for principal, step in steps:
        line.now += 1.0
        if step == "come":
            there.append(line.come(principal))
        elif there and step == "leave":
            assert line.queue.leave(there.pop(len(there) // 2))
        elif there:
            first = next(line.queue.in_turn(line.now, line.lift_s))
            assert line.serve() == first.who
            there.remove(first)
        order = list(line.queue.in_turn(line.now, line.lift_s))
        assert len(order) == len(set(map(id, order))) == len(there) == len(line.queue)
        assert set(map(id, order)) == set(map(id, there))
