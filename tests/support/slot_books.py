"""A book of shared slots in memory, which goes by the same rule as the one in Valkey; a test holds them together."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from corral.config import ValkeySettings
from corral.core.holding import Answer, Ask
from corral.upstream.shared.book import PLACE_SHARE, Message, Start, settle_s
from corral.valkey.lost import ValkeyLost


@dataclass(slots=True)
class Entry:
    """What one Corral holds, and the tasks of its call that stands in line (0: none)."""

    held: int
    until: float
    waits: int
    place_until: float
    since: int


@dataclass(slots=True)
class Page:
    """One replica."""

    entries: dict[str, Entry] = field(default_factory=dict)
    # When it was last asked.
    asked_at: float = 0.0

    def prolong(self, until: float) -> None:
        """It may have been away from all of them."""
        for each in self.entries.values():
            if each.held and each.place_until > 0 and each.until < until:
                each.until, each.waits, each.place_until = until, 0, 0.0


class MemoryBook:
    """The book that all Corrals of a test share; each may be cut off from it. Written by who asks."""

    def __init__(self, clock: Callable[[], float], lease_s: float = 15.0) -> None:
        self.pages: dict[str, Page] = {}
        self.away = False
        # Messages are lost on their way.
        self.mute = False
        self.asked = 0
        # How long a question and its answer are on their way, in turns of the loop.
        self.turns = 0
        # Older than anything that is waited for.
        self._run_id, self._started_at = "first", -1000.0
        self._clock = clock
        self._lease_s = lease_s
        self.settle_s = settle_s(ValkeySettings())
        self._version = 0
        self._listeners: list[asyncio.Queue[Message | None]] = []

    def stop(self) -> None:
        """It cannot be reached any more."""
        self.away = True
        for each in self._listeners:
            each.put_nowait(None)

    def come_back(self, *, forgetful: bool) -> None:
        self.away = False
        if forgetful:
            self.pages.clear()
            self._run_id, self._started_at = f"{self._run_id} and again", self._clock()

    async def hold(self, holder: str, name: str, ask: Ask) -> Answer:
        self.asked += 1
        await self._travel()
        self._reach()
        answer = self.decide(holder, name, ask)
        await self._travel()
        self._reach()
        return answer

    def decide(self, holder: str, name: str, ask: Ask) -> Answer:
        """The rule."""
        now, page = self._clock(), self.pages.setdefault(name, Page())
        self._version += 1
        before = page.entries
        total_before, line_before = _sums(before)
        if now - page.asked_at > self._lease_s / 2:
            page.prolong(now + self.settle_s)
        page.asked_at = now
        for each in before.values():
            if each.place_until <= now:
                # So that its end is told once.
                each.waits = 0
        others = {who: each for who, each in before.items() if who != holder and each.until > now}
        line = sorted((each.since, each.waits) for each in others.values() if each.waits)
        own = before.get(holder)
        place = own.since if own and own.waits else None
        held_elsewhere = sum(each.held for each in others.values())
        granted, held, waits = 0, ask.keep, 0
        for tasks in ask.tasks:
            ahead = sum(each for since, each in line if place is None or since < place)
            if held_elsewhere + held + tasks + ahead > ask.slots:
                waits = tasks if tasks <= ask.slots else 0
                break
            granted, held, place = granted + 1, held + tasks, None
        page.entries = dict(others)
        if held or waits:
            since = self._version if place is None else place
            page.entries[holder] = Entry(held, now + self._lease_s, waits, now + self._lease_s * PLACE_SHARE, since)
        total, in_line = _sums(page.entries)
        if total != total_before or total + in_line < total_before + line_before:
            self._tell(Message(name, total, self._version))
        ends = [
            at for each in others.values() for at in (each.until, each.place_until if each.waits else 0) if at > now
        ]
        ahead = sum(each for since, each in line if place is None or since < place)
        return Answer(granted, held_elsewhere, ahead, self._version, min(ends) - now if ends else None)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Message]]:
        self._reach()
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        self._listeners.append(said)
        try:
            yield _heard(said)
        finally:
            self._listeners.remove(said)

    async def start(self) -> Start:
        self._reach()
        return Start(self._run_id, self._clock() - self._started_at)

    async def close(self) -> None:
        pass

    def held(self, name: str) -> int:
        """By all whose entries count."""
        return sum(self.held_by(holder, name) for holder in self.pages.get(name, Page()).entries)

    def held_by(self, holder: str, name: str) -> int:
        entry = self.pages.get(name, Page()).entries.get(holder)
        return entry.held if entry is not None and entry.until > self._clock() else 0

    async def _travel(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)

    def _reach(self) -> None:
        if self.away:
            raise ValkeyLost("away")

    def _tell(self, message: Message) -> None:
        if not self.mute:
            for each in self._listeners:
                each.put_nowait(message)


def _sums(entries: dict[str, Entry]) -> tuple[int, int]:
    """Slots that are held, and tasks that stand in line."""
    return sum(each.held for each in entries.values()), sum(each.waits for each in entries.values())


async def _heard(said: "asyncio.Queue[Message | None]") -> AsyncIterator[Message]:
    while True:
        message = await said.get()
        if message is None:
            raise ValkeyLost("gone")
        yield message
