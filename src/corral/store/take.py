"""Takes what a file of a journal has into the store; runs in a process of its own (``taker.py``)."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import UsageSettings
from corral.core.price import Price
from corral.store.batch import Batch
from corral.store.database import migrate, writing
from corral.store.line import FORMAT, Line, decoded, format_of
from corral.store.retention import forget
from corral.store.write_usage import Place, advance, insert, place_of, write

# What one transaction takes of a file: some five thousand exchanges.
PIECE_BYTES = 2**20
# So much of it is worked on at a time, so that little memory is used again and again.
PART_BYTES = 2**17


@dataclass(frozen=True, slots=True)
class Task:
    """A file whose lines are to be taken, and what they are worth."""

    run: str
    number: int
    path: str
    size: int
    prices: Mapping[str, Price]
    # Trust no line to have what the columns take.
    careful: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """How far the file is in the store now, exchanges that were added, lines that were none.

    ``foreign``: it is a file of another version, and is left alone.
    """

    position: int
    rows: int = 0
    bad: int = 0
    foreign: bool = False


class Taker:
    """Writes the store, one piece of a file after the other. One writer: whoever calls ``take``, one at a time.

    A piece and the place behind it are written in one transaction: whatever breaks off, nothing is lost or doubled.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._migrated = False
        # By run; what is not in here is asked for.
        self._places: dict[str, Place] = {}

    async def take(self, task: Task) -> Taken:
        """Take all whole lines that a file has; raises what the database or the disk does."""
        if not self._migrated:
            await migrate(self._engine)
            self._migrated = True
        try:
            return await self._take(task)
        except BaseException:
            # Whether the last transaction was committed is not known.
            self._places.pop(task.run, None)
            raise

    async def forget(self, settings: UsageSettings, now: float) -> None:
        """Delete what is to be kept no longer."""
        await forget(self._engine, settings, now)

    async def close(self) -> None:
        """Nothing is open between two tasks."""

    async def _take(self, task: Task) -> Taken:
        place = await self._place(task)
        if place.file > task.number:
            # All of it was taken before.
            return Taken(task.size)
        rows = bad = 0
        descriptor = os.open(task.path, os.O_RDONLY)
        try:
            while piece := _whole_lines(os.pread(descriptor, PIECE_BYTES, place.position)):
                if place.position == 0 and format_of(piece.partition(b"\n")[0]) != FORMAT:
                    return Taken(0, foreign=True)
                batch = Batch(place.journal, task.prices, careful=task.careful)
                place = self._places[task.run] = await self._take_piece(place, piece, batch)
                rows += batch.rows
                bad += batch.bad
        finally:
            os.close(descriptor)
        return Taken(place.position, rows, bad)

    async def _place(self, task: Task) -> Place:
        place = self._places.get(task.run)
        if place is not None and place.file >= task.number:
            return place
        async with writing(self._engine) as connection:
            place = await place_of(connection, task.run)
            if place.file < task.number:
                # All before has been read.
                await advance(connection, place, place := Place(place.journal, task.number, 0))
        self._places[task.run] = place
        return place

    async def _take_piece(self, place: Place, piece: bytes, batch: Batch) -> Place:
        moved = Place(place.journal, place.file, place.position + len(piece))
        async with writing(self._engine) as connection:
            await advance(connection, place, moved)
            rows: list[Line] = []
            for part in _parts(piece if place.position else piece.partition(b"\n")[2]):
                lines, bad = decoded(part)
                batch.bad += bad
                batch.add(lines)
                rows = await insert(connection, rows + batch.settled())
                await asyncio.sleep(0)
            await insert(connection, rows + batch.rest(), last=True)
            await write(connection, batch)
        return moved


def _whole_lines(piece: bytes) -> bytes:
    return piece[: piece.rfind(b"\n") + 1]


def _parts(piece: bytes) -> Iterator[bytes]:
    """The piece in parts of whole lines."""
    start = 0
    while start < len(piece):
        end = piece.find(b"\n", min(start + PART_BYTES, len(piece)) - 1) + 1
        yield piece[start:end]
        start = end
