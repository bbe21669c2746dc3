"""What is written of each exchange, and when."""

import logging
import os
from pathlib import Path

import pytest

from corral.core.record import Outcome
from corral.store.journal import CLOSINGS_WAIT_S, KEPT_BYTES, RETRY_S
from corral.store.journal_files import JournalFile, dead_runs
from corral.store.line import FIELDS
from support.journals import BEGAN, finish, journal_in, lines_in, record_of
from support.virtual_time import advance, in_virtual_time

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "corral")


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "corral"]


@in_virtual_time
async def test_a_sealed_exchange_is_in_the_file_at_once(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.seal(record_of(7))
    (line,) = lines_in(tmp_path)
    shown = dict(zip(FIELDS, line, strict=True))
    assert shown["outcome"] is None
    assert (shown["sequence"], shown["request_id"], shown["client"]) == (1, "req-7", "ann")
    assert (shown["prompt_tokens"], shown["cached_tokens"], shown["completion_tokens"]) == (1007, 7, 15)
    assert (shown["ttft_s"], shown["queue_wait_s"]) == (1.0, 0.5)
    journal.shut()
    journal.leave()


@in_virtual_time
async def test_how_it_ended_is_told_by_the_next_line(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    first, second = record_of(1), record_of(2, outcome=Outcome.CLIENT_GONE)
    second.status = 499
    for record in (first, second):
        journal.seal(record)
        journal.close(record)
    journal.seal(record_of(3))
    assert [line[1] for line in lines_in(tmp_path)] == [[], [1], [[2, "client_gone", 499, None]]]
    journal.shut()
    journal.leave()


@in_virtual_time
async def test_how_it_ended_is_told_soon_also_when_no_other_line_comes(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    finish(journal, record_of(1))
    await advance(CLOSINGS_WAIT_S)
    assert lines_in(tmp_path)[1:] == [[0, [1]]]
    journal.shut()
    journal.leave()


@in_virtual_time
async def test_how_it_ended_is_told_at_the_latest_when_corral_stops(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    finish(journal, record_of(1))
    journal.shut()
    journal.leave()
    assert lines_in(tmp_path)[1:] == [[0, [1]]]


@in_virtual_time
async def test_what_ends_otherwise_is_written_with_its_outcome(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    finish(journal, record_of(1, outcome=Outcome.UPSTREAM_ERROR))
    (line,) = lines_in(tmp_path)
    shown = dict(zip(FIELDS, line, strict=True))
    assert (shown["outcome"], shown["status"]) == ("upstream_error", 502)
    assert shown["ended"] == BEGAN + 1 + 4.5
    assert shown["slot_s"] == 4.0
    journal.shut()
    journal.leave()


@in_virtual_time
async def test_strangers_leave_no_line(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    finish(journal, record_of(1, client="", outcome=Outcome.REFUSED))
    assert lines_in(tmp_path) == []
    journal.shut()
    journal.leave()


@in_virtual_time
async def test_a_file_that_is_full_is_followed_by_another(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, file_bytes=2000)
    for number in range(40):
        finish(journal, record_of(number))
    journal.shut()
    assert [file.number for file in journal.files] == list(range(1, len(journal.files) + 1))
    assert len(journal.files) >= 3
    assert all(file.size() < 2400 for file in journal.files)
    assert [line[0] for line in lines_in(tmp_path) if line[0]] == list(range(1, 41))
    journal.leave()


@in_virtual_time
async def test_the_files_of_one_that_lives_are_its_own(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, file_bytes=500)
    for number in range(5):
        finish(journal, record_of(number))
    assert dead_runs(tmp_path, ()) == []
    journal.shut()
    journal.leave()
    ((*files,),) = dead_runs(tmp_path, ())
    assert [file.number for file in files] == list(range(1, len(files) + 1))
    # Who has adopted them is their owner now.
    assert dead_runs(tmp_path, ()) == []
    for file in files:
        file.close()


def test_a_run_whose_first_file_is_another_ones_is_left_alone(tmp_path: Path) -> None:
    files = [JournalFile.create(tmp_path, "ab" * 8, number) for number in (1, 2)]
    files[1].close()
    assert dead_runs(tmp_path, ()) == []
    files[0].close()


class Disk:
    """A disk that takes so many bytes more; a line that does not fit is torn, as the system does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 10**9
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.free:
            raise OSError(28, "No space left on device")
        taken = min(len(data), self.free)
        self.free -= taken
        return self._write(descriptor, data[:taken])


@in_virtual_time
async def test_what_a_full_disk_does_not_take_is_written_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(monkeypatch)
    journal = journal_in(tmp_path)
    finish(journal, record_of(1))
    disk.free = 30
    for number in (2, 3, 4):
        finish(journal, record_of(number))
    assert journal.kept >= 3
    assert [line[0] for line in lines_in(tmp_path)] == [1]
    await advance(RETRY_S)
    assert journal.kept >= 3
    disk.free = 10**9
    await advance(RETRY_S)
    assert journal.kept == 0
    journal.shut()
    assert [line[0] for line in lines_in(tmp_path) if line[0]] == [1, 2, 3, 4]
    assert journal.lost == 0
    journal.leave()
    assert told(caplog) == [
        ("ERROR", "usage journal cannot be written"),
        ("INFO", "usage journal is written again"),
    ]


@in_virtual_time
async def test_what_is_given_up_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    journal = journal_in(tmp_path)
    disk.free = 0
    count = KEPT_BYTES // 100
    for number in range(count):
        journal.seal(record_of(number))
    assert journal.kept + journal.lost == count
    assert 0 < journal.kept < count
    journal.shut()
    assert journal.lost == count
    journal.leave()


@in_virtual_time
async def test_a_directory_that_cannot_be_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("this is no directory")
    journal = journal_in(blocked)
    finish(journal, record_of(1))
    assert told(caplog) == [("ERROR", "usage journal cannot be written")]
    blocked.unlink()
    await advance(RETRY_S)
    journal.shut()
    assert [line[0] for line in lines_in(blocked) if line[0]] == [1]
    journal.leave()


@in_virtual_time
async def test_what_comes_after_the_end_is_counted_as_lost(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    late = record_of(2)
    journal.seal(record_of(1))
    journal.shut()
    journal.seal(late)
    journal.close(late)
    assert journal.lost == 1
    assert journal.current is None
    assert [line[0] for line in lines_in(tmp_path)] == [1]
    journal.leave()
