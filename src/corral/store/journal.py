"""The journal: what remains of each exchange, written to a file before its answer ends.

A line that was written survives the death of this process, as the system has it. So an answer that a client has seen
to its end has its line; the store takes them from there (``ingest.py``), whenever it can.
"""

import asyncio
import errno
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path

from corral.core.record import Outcome, Record
from corral.store.journal_files import JournalFile
from corral.store.line import OK, Closing, closing, closings_line, exchange_line

log = logging.getLogger("corral")

# Closings wait so long for a line that takes them along.
CLOSINGS_WAIT_S = 0.05
# While no line can be written, so many bytes of them are kept: some forty thousand exchanges.
KEPT_BYTES = 8 * 2**20
RETRY_S = 1.0
# What goes on being wrong is told so often.
TOLD_EVERY_S = 60.0
# A file that could not be followed by a new one may grow by this much until that is tried again.
OVERHANG_BYTES = 2**20


class Journal:
    """The files of this process's exchanges. One writer: itself, on seals and closings, within the event loop.

    ``seal`` is for an answer that is complete and whose end is not sent yet, ``close`` for every exchange that is
    over. Neither raises: what cannot be written is kept, as long as there is room for it, and written later.
    """

    def __init__(self, directory: Path, file_bytes: int, clock: Callable[[], float]) -> None:
        self.run = secrets.token_hex(8)
        # The files that are not ingested to their end yet; the last is the one that is written.
        self.files: deque[JournalFile] = deque()
        # Lines that were given up.
        self.lost = 0
        self._directory = directory
        self._file_bytes = file_bytes
        self._clock = clock
        self._sequence = 0
        self._number = 0
        self._descriptor = -1
        self._size = 0
        self._full_at = file_bytes
        self._left = False
        self._closings: list[Closing] = []
        self._closings_timer: asyncio.TimerHandle | None = None
        # Lines that could not be written yet.
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._retry_timer: asyncio.TimerHandle | None = None
        self._told_at: float | None = None

    def open(self) -> None:
        """Begin the first file."""
        try:
            self._begin_file()
        except OSError as error:
            self._fail(error)

    def seal(self, record: Record) -> None:
        """Write down an exchange whose answer is complete, before the client gets the end of it."""
        if record.client and not record.sequence:
            self._write_exchange(record, None, self._clock())

    def close(self, record: Record) -> None:
        """Write down how an exchange has ended; strangers leave no line, so that they cannot fill a disk."""
        if record.sequence:
            self._closings.append(record.sequence if record.outcome is OK else closing(record))
            if self._closings_timer is None:
                loop = asyncio.get_running_loop()
                self._closings_timer = loop.call_later(CLOSINGS_WAIT_S, self._tell_closings)
        elif record.client:
            self._write_exchange(record, record.outcome, record.closed_at or self._clock())

    @property
    def kept(self) -> int:
        """How many lines wait in memory until they can be written."""
        return len(self._kept)

    @property
    def current(self) -> JournalFile | None:
        """The file that is written now."""
        return self.files[-1] if self._descriptor >= 0 else None

    def renew(self) -> bool:
        """Go on in another file, as nobody would find this one after the end of this process; whether that works."""
        before = self.current
        self._rotate()
        return self.current is not before

    def release(self, file: JournalFile) -> None:
        """The first of ``files`` is in the store to its end, and is deleted."""
        self.files.remove(file)
        if file.descriptor == self._descriptor:
            self._descriptor = -1
        file.delete()

    def shut(self) -> None:
        """Write what is left to be told, as far as that is possible; what comes now is lost."""
        self._tell_closings()
        self._write_kept()
        self.lost += len(self._kept)
        self._kept.clear()
        self._descriptor, self._left = -1, True

    def leave(self) -> None:
        """Let go of the files that the store has not taken; the next Corral adopts them."""
        self._descriptor, self._left = -1, True
        for timer in (self._closings_timer, self._retry_timer):
            if timer is not None:
                timer.cancel()
        for file in self.files:
            file.close()
        self.files.clear()

    def _write_exchange(self, record: Record, outcome: Outcome | None, now: float) -> None:
        self._sequence += 1
        record.sequence = self._sequence
        line = exchange_line(record, self._closings, outcome, now)
        self._closings.clear()
        self._write(line)

    def _tell_closings(self) -> None:
        if self._closings_timer is not None:
            self._closings_timer.cancel()
            self._closings_timer = None
        if self._closings:
            closings, self._closings = self._closings, []
            self._write(closings_line(closings))

    def _write(self, line: bytes) -> None:
        if self._kept or self._left:
            self._keep(line)
            return
        try:
            if self._size >= self._full_at or self._descriptor < 0:
                self._rotate()
            written = os.write(self._descriptor, line)
            self._size += written
            if written != len(line):
                self._take_back(written)
        except OSError as error:
            self._keep(line)
            self._fail(error)

    def _take_back(self, written: int) -> None:
        """Part of a line is there, which nobody reads as it has no end; raises the OSError that the rest would get."""
        self._size -= written
        os.ftruncate(self._descriptor, self._size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _rotate(self) -> None:
        try:
            self._begin_file()
        except OSError:
            if self._descriptor < 0:
                raise
            self._full_at = self._size + OVERHANG_BYTES

    def _begin_file(self) -> None:
        file = JournalFile.create(self._directory, self.run, self._number + 1)
        self._number += 1
        self.files.append(file)
        self._descriptor = file.descriptor
        self._size = file.size()
        self._full_at = self._file_bytes

    def _keep(self, line: bytes) -> None:
        if self._left or self._kept_bytes + len(line) > KEPT_BYTES:
            self.lost += 1
            return
        self._kept.append(line)
        self._kept_bytes += len(line)

    def _fail(self, error: OSError) -> None:
        """Tell the operator, now and then, and try again later."""
        now = self._clock()
        if self._told_at is None or now - self._told_at >= TOLD_EVERY_S:
            self._told_at = now
            fields = {"why": error.strerror or str(error), "kept": len(self._kept), "lost": self.lost}
            log.error("usage journal cannot be written", extra={"fields": fields})
        if self._retry_timer is None:
            self._retry_timer = asyncio.get_running_loop().call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        if self._descriptor < 0 and not self._kept:
            self.open()
        self._write_kept()
        if self._kept or self._descriptor < 0:
            return
        self._told_at = None
        log.info("usage journal is written again", extra={"fields": {"lost": self.lost}})

    def _write_kept(self) -> None:
        """Try to write what was kept; it may be kept again."""
        kept, self._kept, self._kept_bytes = self._kept, deque(), 0
        for line in kept:
            self._write(line)
