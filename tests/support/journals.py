"""Journals of made-up exchanges, for tests of what becomes of them."""

from pathlib import Path

from corral.core.call import Endpoint
from corral.core.record import Outcome, Record
from corral.core.usage import Usage
from corral.store.journal import Journal
from corral.store.line import decoded

BEGAN = 1_764_000_000.0
# By the clock of a journal that stands still, which is when all of them end.
CLOSED_AT = 104.5


def record_of(number: int, *, client: str = "ann", key_id: str = "", outcome: Outcome = Outcome.OK) -> Record:
    """An exchange unlike all others: the sum of its tokens tells it."""
    return Record(
        f"req-{number}",
        Endpoint.CHAT,
        opened_at=100.0,
        opened_unix_s=BEGAN + number,
        client=client,
        key_id=key_id,
        model="llama",
        replica="llama-0",
        status=200 if outcome is Outcome.OK else 502,
        outcome=outcome,
        attempts=1,
        slots=1,
        queued_at=100.0,
        leased_at=100.5,
        first_byte_at=101.0,
        closed_at=CLOSED_AT,
        usage=Usage(1000 + number, number, 2 * number + 1),
    )


def journal_in(directory: Path, file_bytes: int = 2**20) -> Journal:
    """An open one; to be made within a running loop."""
    journal = Journal(directory, file_bytes, lambda: CLOSED_AT)
    journal.open()
    return journal


def finish(journal: Journal, record: Record) -> None:
    """Let an exchange end, as ``Exchange`` does: only what was well had been sealed before."""
    if record.outcome in (Outcome.OK, Outcome.CLIENT_GONE):
        journal.seal(record)
    journal.close(record)


def lines_in(directory: Path) -> list[list[object]]:
    """All lines of all files, without their heads."""
    lines: list[list[object]] = []
    for path in sorted(directory.glob("*.journal")):
        told, bad = decoded(path.read_bytes().partition(b"\n")[2])
        assert not bad
        lines += told
    return lines
