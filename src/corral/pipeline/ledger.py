"""Every exchange ends in one record, whatever happens."""

from collections.abc import Callable, Sequence

from corral.core.call import Endpoint
from corral.core.record import Record

Sink = Callable[[Record], None]
Clock = Callable[[], float]


class Ledger:
    """The open exchanges. One writer: itself, on opening and closing."""

    def __init__(self, sinks: Sequence[Sink], clock: Clock, unix_clock: Clock) -> None:
        self._sinks = sinks
        self._clock = clock
        self._unix_clock = unix_clock
        self._records: dict[int, Record] = {}

    def open(self, endpoint: Endpoint, request_id: str) -> "Entry":
        """A ``with`` block's record, which is closed and handed to the sinks on leaving; it does not await."""
        record = Record(request_id, endpoint, opened_at=self._clock(), opened_unix_s=self._unix_clock())
        self._records[id(record)] = record
        return Entry(self, record)

    def close(self, record: Record) -> None:
        """For the entry that is left."""
        del self._records[id(record)]
        record.closed_at = self._clock()
        for sink in self._sinks:
            sink(record)

    def in_flight(self) -> dict[Endpoint, int]:
        """How many exchanges are open now, by endpoint."""
        counts = dict.fromkeys(Endpoint, 0)
        for record in self._records.values():
            counts[record.endpoint] += 1
        return counts


class Entry:
    """An open record, for the block that writes it. (A generator would cost each exchange a microsecond more.)"""

    __slots__ = ("_ledger", "_record")

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self._ledger = ledger
        self._record = record

    def __enter__(self) -> Record:
        return self._record

    def __exit__(self, *_: object) -> None:
        self._ledger.close(self._record)
