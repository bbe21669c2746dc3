"""Takes what the journals have into the store, off the way of requests."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import UsageSettings
from corral.core.price import Price
from corral.store.batch import Batch
from corral.store.database import migrate, writing
from corral.store.journal import Journal
from corral.store.journal_files import JournalFile, dead_runs
from corral.store.line import FORMAT, Line, decoded, format_of
from corral.store.retention import forget
from corral.store.write_usage import Place, advance, insert, place_of, write

log = logging.getLogger("corral")

# What one transaction takes of a file: some five thousand exchanges.
PIECE_BYTES = 2**20
# So much of it is worked on at a time, with other tasks' turns in between: less than a millisecond.
PART_BYTES = 2**17
# How often files of dead Corrals are looked for, and old rows deleted.
ADOPT_EVERY_S = 60.0
FORGET_EVERY_S = 3600.0
# The pauses after failures.
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
# What may be missing in the store when Corral is told to stop is written for so long.
STOP_S = 5.0

Prices = Mapping[str, Price]


@dataclass(slots=True)
class Source:
    """The files of one run of a Corral, in their order. One writer: the ingester."""

    run: str
    files: list[JournalFile]
    # What is behind it is still to be read; None when it has to be asked for.
    place: Place | None = None
    # It is no file that this version reads.
    foreign: bool = False


class Ingester:
    """Reads the journals and writes the store, one piece after the other. One writer: the task of ``run``.

    A piece and the place behind it are written in one transaction: whatever breaks off, nothing is lost or doubled.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        journal: Journal,
        settings: UsageSettings,
        prices: Prices,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # As the settings in force have them.
        self.prices = prices
        self.settings = settings
        # Exchanges that it has written.
        self.rows = 0
        self._engine = engine
        self._journal = journal
        self._clock = clock
        self._own = Source(journal.run, [])
        self._adopted: list[Source] = []
        self._migrated = False
        self._failures = 0
        self._adopt_at = 0.0
        self._forget_at = 0.0
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Until ``stop``, which waits for the last piece."""
        while not self._stopping.is_set():
            pause_s = await self.turn()
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue
        await self.turn()

    def stop(self) -> None:
        """Have ``run`` write what there is, and end."""
        self._stopping.set()

    def leave(self) -> None:
        """Let go of files that the store has not taken."""
        for source in self._adopted:
            for file in source.files:
                file.close()
        self._adopted.clear()

    @property
    def lag_bytes(self) -> int:
        """How much of the journals the store has not taken yet."""
        self._own.files = list(self._journal.files)
        return sum(_unread_bytes(source) for source in (self._own, *self._adopted))

    async def turn(self) -> float:
        """Take all there is; how long to wait then."""
        try:
            await self._take_all()
        except Exception as error:  # noqa: BLE001  (the border: whatever is wrong here, requests go on)
            return self._failed(error)
        if self._failures:
            log.info("usage has caught up", extra={"fields": {"failures": self._failures}})
        self._failures = 0
        return self.settings.ingest_s

    def _failed(self, error: Exception) -> float:
        if not self._failures:
            fields = {"why": f"{type(error).__name__}: {error}".splitlines()[0], "lag_bytes": self.lag_bytes}
            log.warning("usage store cannot be written", extra={"fields": fields})
        self._failures += 1
        for source in (self._own, *self._adopted):
            # Whether the last transaction was committed is not known.
            source.place = None
        return min(FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), LAST_PAUSE_S)

    async def _take_all(self) -> None:
        if not self._migrated:
            await migrate(self._engine)
            self._migrated = True
        self._adopt()
        for source in list(self._adopted):
            await self._take(source)
            if not source.files:
                self._adopted.remove(source)
        self._own.files = list(self._journal.files)
        await self._take(self._own)
        if self._clock() >= self._forget_at:
            await forget(self._engine, self.settings, time.time())
            self._forget_at = self._clock() + FORGET_EVERY_S

    def _adopt(self) -> None:
        if self._clock() < self._adopt_at:
            return
        self._adopt_at = self._clock() + ADOPT_EVERY_S
        known = {self._own.run, *(source.run for source in self._adopted)}
        for files in dead_runs(self.settings.journal_dir, known):
            self._adopted.append(Source(files[0].run, files))
            log.info("usage journal adopted", extra={"fields": {"run": files[0].run, "files": len(files)}})

    async def _take(self, source: Source) -> None:
        """Read its files to their end, and delete those that nobody writes any more."""
        while source.files and not source.foreign:
            file = source.files[0]
            if source.place is None:
                async with writing(self._engine) as connection:
                    source.place = await place_of(connection, source.run)
            if source.place.file < file.number:
                # All before has been read.
                await self._move(source, source.place, file.number)
            elif source.place.file > file.number:
                self._drop(source, file)
            elif piece := file.read(source.place.position, PIECE_BYTES):
                await self._take_piece(source, source.place, piece)
            elif file is self._journal.current:
                return
            else:
                self._end(source, file, source.place)

    async def _move(self, source: Source, place: Place, number: int) -> None:
        """To the beginning of a file."""
        moved = Place(place.journal, number, 0)
        async with writing(self._engine) as connection:
            await advance(connection, place, moved)
        source.place = moved

    def _end(self, source: Source, file: JournalFile, place: Place) -> None:
        """All whole lines of a file are in the store, and no more come."""
        if torn := file.size() - place.position:
            log.warning("usage journal has a torn line", extra={"fields": {"run": source.run, "bytes": torn}})
        self._drop(source, file)

    def _drop(self, source: Source, file: JournalFile) -> None:
        source.files.remove(file)
        if source is self._own:
            self._journal.release(file)
        else:
            file.delete()

    async def _take_piece(self, source: Source, place: Place, piece: bytes) -> None:
        batch = Batch(place.journal, self.prices, careful=self._failures > 0)
        behind = place.position + len(piece)
        if place.position == 0:
            head, _, piece = piece.partition(b"\n")
            if format_of(head) != FORMAT:
                source.foreign = True
                log.error("usage journal of another version", extra={"fields": {"run": source.run}})
                return
        moved = Place(place.journal, place.file, behind)
        async with writing(self._engine) as connection:
            await advance(connection, place, moved)
            rows: list[Line] = []
            for part in _parts(piece):
                lines, bad = decoded(part)
                batch.bad += bad
                batch.add(lines)
                rows = await insert(connection, rows + batch.settled())
            await insert(connection, rows + batch.rest(), last=True)
            await write(connection, batch)
        source.place = moved
        self.rows += batch.rows
        if batch.bad:
            log.warning("usage journal has bad lines", extra={"fields": {"run": source.run, "lines": batch.bad}})


def _parts(piece: bytes) -> Iterator[bytes]:
    """The piece in parts of whole lines."""
    start = 0
    while start < len(piece):
        end = piece.find(b"\n", min(start + PART_BYTES, len(piece)) - 1) + 1
        yield piece[start:end]
        start = end


def _unread_bytes(source: Source) -> int:
    place = source.place
    number, position = (place.file, place.position) if place is not None else (0, 0)
    return sum(
        file.size() - (position if file.number == number else 0) for file in source.files if file.number >= number
    )
