"""What a piece of a journal comes to: rows of exchanges, and their sums by hour."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from corral.core.price import Price
from corral.core.record import Outcome
from corral.core.sketch import Sketch, bucket_of
from corral.store.line import FIELDS, Closing, Line, cleaned

HOUR_S = 3600
# The answer was complete, and Corral was killed before it could say whether the client has got its end.
UNCONFIRMED = "unconfirmed"
WELL = Outcome.OK.value

# A line becomes a row in its place: the number of its journal stands where its closings stood, its cost at the end.
COLUMNS = ("sequence", "journal", *FIELDS[2:], "cost")
SEQUENCE, JOURNAL, OUTCOME = 0, 1, 2
CLOSINGS = JOURNAL
ENDED, CLIENT, KEY_ID = FIELDS.index("ended"), FIELDS.index("client"), FIELDS.index("key_id")
MODEL, STATUS, ERROR_CODE = FIELDS.index("model"), FIELDS.index("status"), FIELDS.index("error_code")
PROMPT, CACHED = FIELDS.index("prompt_tokens"), FIELDS.index("cached_tokens")
COMPLETION, TTFT, SLOT_S = FIELDS.index("completion_tokens"), FIELDS.index("ttft_s"), FIELDS.index("slot_s")
COST = len(FIELDS)

# The number of the hour since 1970, client, key, model, outcome.
SumKey = tuple[float, str, str, str, str]


@dataclass(slots=True)
class Sum:
    """What exchanges come to. One writer: its batch."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    slot_s: float = 0.0
    cost: float = 0.0
    ttft: Sketch = field(default_factory=Sketch)


class Batch:
    """Takes in lines of one journal, in their order. One writer: the ingester, which takes the rows as they settle.

    A seal waits for its closing, which comes with one of the next lines; what still waits at the end is unconfirmed.
    """

    def __init__(self, journal: int, prices: Mapping[str, Price], *, careful: bool) -> None:
        """``careful``: trust no line to have what the columns take."""
        self.journal = journal
        # Closings of rows that are in the store already.
        self.late: list[Closing] = []
        self.sums: dict[SumKey, Sum] = {}
        # When a key was used last.
        self.last_used: dict[str, float] = {}
        # How many rows there were, and lines that are none.
        self.rows = 0
        self.bad = 0
        self._prices = prices
        self._careful = careful
        self._settled: list[Line] = []
        # Seals, by their sequence numbers.
        self._open: dict[int, Line] = {}

    def add(self, lines: Iterable[Line]) -> None:
        """Take in lines, and what they say of those before."""
        for line in lines if not self._careful else self._cleaned(lines):
            for closing in line[CLOSINGS]:
                self._close(closing)
            if sequence := line[SEQUENCE]:
                line[JOURNAL] = self.journal
                if line[OUTCOME] is None:
                    self._open[sequence] = line
                else:
                    self._settled.append(line)

    def settled(self) -> list[Line]:
        """The rows whose outcome is known by now, each once; they are in the sums."""
        rows, self._settled = self._settled, []
        self._sum_up(rows)
        return rows

    def rest(self) -> list[Line]:
        """The other rows, when no more lines come."""
        rows = list(self._open.values())
        self._open.clear()
        for row in rows:
            row[OUTCOME] = UNCONFIRMED
        self._sum_up(rows)
        return rows

    def count(self, row: Line, outcome: str, sign: int = 1) -> None:
        """Add a row to the sum of an outcome, or take it back from there."""
        key = (row[ENDED] // HOUR_S, row[CLIENT], row[KEY_ID], row[MODEL], outcome)
        total = self.sums.get(key)
        if total is None:
            total = self.sums[key] = Sum()
        total.requests += sign
        total.prompt_tokens += sign * row[PROMPT]
        total.cached_tokens += sign * row[CACHED]
        total.completion_tokens += sign * row[COMPLETION]
        total.slot_s += sign * row[SLOT_S]
        total.cost += sign * row[COST]
        if (ttft_s := row[TTFT]) is not None:
            bucket = bucket_of(ttft_s)
            counts = total.ttft.counts
            counts[bucket] = counts.get(bucket, 0) + sign

    def _sum_up(self, rows: list[Line]) -> None:
        """Give each row its cost, and add it to its sum."""
        prices, last_used = self._prices, self.last_used
        self.rows += len(rows)
        for row in rows:
            price = prices.get(row[MODEL])
            row.append(0.0 if price is None else price.of(row[PROMPT], row[CACHED], row[COMPLETION]))
            key_id = row[KEY_ID]
            if key_id and row[ENDED] > last_used.get(key_id, 0.0):
                last_used[key_id] = row[ENDED]
            self.count(row, row[OUTCOME])

    def _cleaned(self, lines: Iterable[Line]) -> Iterator[Line]:
        for line in lines:
            if clean := cleaned(line):
                yield clean
            else:
                self.bad += 1

    def _close(self, closing: Closing) -> None:
        sequence, outcome, status, error_code = outcome_of(closing)
        row = self._open.pop(sequence, None)
        if row is None:
            self.late.append(closing)
            return
        row[OUTCOME] = outcome
        if status:
            row[STATUS], row[ERROR_CODE] = status, error_code
        self._settled.append(row)


def outcome_of(closing: Closing) -> tuple[int, str, int, str | None]:
    """Sequence number, outcome, status and error code; status 0 where that of the seal stays."""
    if isinstance(closing, int):
        return closing, WELL, 0, None
    sequence, outcome, status, error_code = closing
    return sequence, outcome, status, error_code
