"""Every exchange leaves one record."""

from collections.abc import Callable
from itertools import count

import pytest

from corral.core.call import Endpoint
from corral.core.record import Outcome, Record
from corral.pipeline.ledger import Ledger


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self, start: int) -> None:
        self._seconds = count(start)

    def __call__(self) -> float:
        return float(next(self._seconds))


def ledger_of(*sinks: Callable[[Record], None]) -> Ledger:
    return Ledger(sinks, clock=Ticks(10), unix_clock=Ticks(1000))


def test_a_record_is_told_when_its_exchange_ends() -> None:
    told: list[Record] = []
    with ledger_of(told.append).open(Endpoint.CHAT, "req_1") as record:
        assert told == []
        record.outcome = Outcome.OK
    assert told == [record]
    assert (record.request_id, record.endpoint) == ("req_1", Endpoint.CHAT)
    assert (record.opened_at, record.opened_unix_s, record.closed_at) == (10.0, 1000.0, 11.0)
    assert record.duration_s == 1.0


def test_every_sink_is_told() -> None:
    first: list[Record] = []
    second: list[Record] = []
    with ledger_of(first.append, second.append).open(Endpoint.CHAT, "req_1"):
        pass
    assert first == second
    assert len(first) == 1


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), GeneratorExit()])
def test_an_exchange_that_breaks_off_leaves_a_record_that_says_aborted(error: BaseException) -> None:
    told: list[Record] = []
    ledger = ledger_of(told.append)
    with pytest.raises(type(error)), ledger.open(Endpoint.CHAT, "req_1"):
        raise error
    assert [record.outcome for record in told] == [Outcome.ABORTED]
    assert told[0].closed_at is not None
    assert ledger.in_flight() == dict.fromkeys(Endpoint, 0)


def test_open_exchanges_are_counted_by_endpoint() -> None:
    ledger = ledger_of()
    with ledger.open(Endpoint.CHAT, "same"), ledger.open(Endpoint.CHAT, "same"), ledger.open(Endpoint.EMBEDDINGS, "x"):
        assert ledger.in_flight() == {Endpoint.CHAT: 2, Endpoint.COMPLETIONS: 0, Endpoint.EMBEDDINGS: 1}
    assert ledger.in_flight() == dict.fromkeys(Endpoint, 0)


def test_an_exchange_is_closed_when_its_sink_is_told() -> None:
    counted: list[int] = []
    ledger = ledger_of(lambda _: counted.append(sum(ledger.in_flight().values())))
    with ledger.open(Endpoint.CHAT, "req_1"):
        pass
    assert counted == [0]
