"""Keeps the book of one shared replica: states what its calls hold, and asks for what they want."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex

from corral.core.holding import Ask, Holding, Stage
from corral.upstream.replica import Replica
from corral.upstream.shared.book import PLACE_SHARE, Book
from corral.valkey.lost import ValkeyLost

# What is held is stated anew three times while a lease lasts, a place in line twice while it does.
REFRESH_SHARE = 1 / 3
PLACE_REFRESH_SHARE = PLACE_SHARE / 2
# The clock of the server and ours do not go alike; what ends there is looked at a little later.
EXPIRY_MARGIN_S = 0.05


class Keeper:
    """One replica's holding. Writer of what the book has said: ``run``, one question at a time, until cancelled."""

    def __init__(
        self, replica: Replica, holding: Holding, book: Book, lease_s: float, on_lost: Callable[[ValkeyLost], None]
    ) -> None:
        """``on_lost`` is told when the book cannot be read."""
        self.name = name_of(replica)
        self.holding = holding
        self._on_lost = on_lost
        self._replica = replica
        self._book = book
        self._lease_s = lease_s
        # One for each replica that there is, also of the same process: two models may name the same server.
        self._holder = token_hex(8)
        self._nudge = asyncio.Event()
        self._expires_s: float | None = None
        holding.on_stale = self._nudge.set

    async def run(self) -> None:
        try:
            while True:
                await self._nudged()
                await self._ask()
        finally:
            await self._leave()

    def told(self, total: int, version: int) -> None:
        """Somebody has stated something else than before."""
        if self.holding.told(total, version):
            self.tell()

    def tell(self) -> None:
        """What is known has changed: who waits may go on, and may want something else."""
        self._replica.on_change()
        self.holding.look(self._replica.busy)

    async def _ask(self) -> None:
        """Ask once; what comes of it is told to the pool."""
        loop, holding, replica = asyncio.get_running_loop(), self.holding, self._replica
        asked_at = loop.time()
        ask = holding.ask(replica.busy, replica.slots)
        try:
            answer = await self._book.hold(self._holder, self.name, ask)
        except ValkeyLost as error:
            holding.unanswered()
            self._on_lost(error)
            return
        except BaseException:
            holding.unanswered()
            raise
        if loop.time() - asked_at >= self._lease_s:
            # We were not running, and what was granted may have been given to others since.
            holding.unanswered()
            self._nudge.set()
            return
        self._expires_s = answer.expires_s
        holding.answered(ask, answer)
        self.tell()

    async def _nudged(self) -> None:
        """Wait until there is something to tell, or it has to be told anew."""
        try:
            async with asyncio.timeout(self._pause_s()):
                await self._nudge.wait()
        except TimeoutError:
            pass
        self._nudge.clear()

    def _pause_s(self) -> float | None:
        if self.holding.stage is Stage.AWAY:
            return None
        if self.holding.waits:
            pause_s = self._lease_s * PLACE_REFRESH_SHARE
            # It may be a dead Corral that is waited for.
            return pause_s if self._expires_s is None else min(pause_s, self._expires_s + EXPIRY_MARGIN_S)
        return self._lease_s * REFRESH_SHARE if self._replica.busy else None

    async def _leave(self) -> None:
        """State for the last time what is held; what still runs is given free when the lease ends."""
        if self.holding.stage is not Stage.AWAY:
            with suppress(ValkeyLost):
                await self._book.hold(self._holder, self.name, Ask(self._replica.slots, self._replica.busy, ()))


def name_of(replica: Replica) -> str:
    """What all Corrals call the server: where it is."""
    address = replica.address
    return f"{address}{address.prefix}" if address else replica.name
