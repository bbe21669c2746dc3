"""Sees to it that what the journals have comes into the store, off the way of requests."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from corral.config import UsageSettings
from corral.core.price import Price
from corral.store.journal import Journal
from corral.store.journal_files import JournalFile, dead_runs
from corral.store.take import Taken, Task

log = logging.getLogger("corral")

# How often files of dead Corrals are looked for, and old rows deleted.
ADOPT_EVERY_S = 60.0
FORGET_EVERY_S = 3600.0
# The pauses after failures.
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
# What may be missing in the store when Corral is told to stop is written for so long.
STOP_S = 5.0

Prices = Mapping[str, Price]


class Takes(Protocol):
    """Who writes the store: a ``Taker`` here, or a ``Child``, which has one in a process of its own."""

    async def take(self, task: Task) -> Taken:
        """Take all whole lines that a file has."""

    async def forget(self, settings: UsageSettings, now: float) -> None:
        """Delete what is to be kept no longer."""

    async def close(self) -> None:
        """Nothing is asked any more."""


@dataclass(slots=True)
class Source:
    """The files of one run of a Corral, in their order. One writer: the ingester."""

    run: str
    files: list[JournalFile]
    # How far the first of them is in the store, as far as is known.
    position: int = 0
    # It is no file that this version reads.
    foreign: bool = False


class Ingester:
    """Has the journals read, one file after the other, and deletes what is in the store. One writer: ``run``'s task."""

    def __init__(
        self,
        takes: Takes,
        journal: Journal,
        settings: UsageSettings,
        prices: Prices,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # As the settings in force have them.
        self.prices = prices
        self.settings = settings
        # Exchanges that it has had written.
        self.rows = 0
        self._takes = takes
        self._journal = journal
        self._clock = clock
        self._own = Source(journal.run, [])
        self._adopted: list[Source] = []
        self._failures = 0
        self._adopt_at = 0.0
        self._forget_at = 0.0
        self._stopping = asyncio.Event()
        # What was in the journals when Corral began is in the store, but for what is spoilt.
        self.caught_up = asyncio.Event()

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
        return min(FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), LAST_PAUSE_S)

    async def _take_all(self) -> None:
        self._adopt()
        self._own.files = list(self._journal.files)
        failed: Exception | None = None
        for source in (*self._adopted, self._own):
            try:
                await self._take(source)
            except Exception as error:  # noqa: BLE001  (as in ``turn``; one that is spoilt keeps no other waiting)
                failed = failed or error
                continue
            if source is self._own:
                self.caught_up.set()
            elif not source.files:
                self._adopted.remove(source)
        if failed is not None:
            raise failed
        if self._clock() >= self._forget_at:
            await self._takes.forget(self.settings, time.time())
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
        """Have its files read to their end, and delete those that nobody writes any more."""
        while source.files and not source.foreign:
            file = source.files[0]
            # Asked before: what is written meanwhile is for the next time.
            growing = file is self._journal.current
            if growing and not file.found and self._journal.renew():
                log.warning("usage journal was taken away", extra={"fields": {"file": str(file.path)}})
            if file.size() > source.position:
                await self._take_file(source, file)
            if growing or source.foreign:
                return
            if torn := file.size() - source.position:
                log.warning("usage journal has a torn line", extra={"fields": {"run": source.run, "bytes": torn}})
            self._drop(source, file)

    async def _take_file(self, source: Source, file: JournalFile) -> None:
        careful = self._failures > 0
        taken = await self._takes.take(
            Task(source.run, file.number, str(file.readable), file.size(), self.prices, careful)
        )
        source.position = taken.position
        source.foreign = taken.foreign
        self.rows += taken.rows
        if taken.bad:
            log.warning("usage journal has bad lines", extra={"fields": {"run": source.run, "lines": taken.bad}})
        if taken.foreign:
            log.error("usage journal of another version", extra={"fields": {"run": source.run}})

    def _drop(self, source: Source, file: JournalFile) -> None:
        source.files.remove(file)
        source.position = 0
        if source is self._own:
            self._journal.release(file)
        else:
            file.delete()


def _unread_bytes(source: Source) -> int:
    return max(0, sum(file.size() for file in source.files) - source.position)
