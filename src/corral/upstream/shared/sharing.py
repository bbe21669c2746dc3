"""Shares the slots of remote replicas with other Corrals, and knows whether that works at the moment."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from corral.config import ValkeySettings
from corral.core.holding import Ask, Holding
from corral.upstream.replica import Replica
from corral.upstream.shared.book import RETRY_S, Book, Message, settle_s
from corral.upstream.shared.keeper import Keeper
from corral.valkey.lost import ValkeyLost

log = logging.getLogger("corral.sharing")

# So soon another connection is made when one has ended.
AGAIN_S = 0.05


class Sharing:
    """Whether the book can be read. One writer: ``run``, and the keepers, who tell it when they cannot."""

    def __init__(self, settings: ValkeySettings, book: Book) -> None:
        self._settings = settings
        self._book = book
        self._settle_s = settle_s(settings)
        self._keepers: list[Keeper] = []
        self._run_id: str | None = None
        self._hearing: asyncio.Timeout | None = None
        # It can be read, and is complete.
        self._there = False
        # Cannot be read since some moment; the log has been told.
        self.lost = False

    def holding(self) -> Holding:
        """For a replica that other Corrals use, too."""
        return Holding(self._settings.corrals if self._settings.away == "share" else None)

    async def run(self) -> None:
        """Hear what the others tell, and come back to the book when it has been away; until cancelled."""
        while True:
            try:
                await self._listen()
            except ValkeyLost as error:
                self._lose(error)
            await asyncio.sleep(AGAIN_S if not self.lost else RETRY_S)

    async def keep(self, replica: Replica) -> None:
        """Share this replica, until cancelled."""
        if replica.shared is None:
            return
        keeper = Keeper(replica, replica.shared, self._book, self._settings.lease_s, self._lose)
        self._keepers.append(keeper)
        try:
            if self.lost:
                keeper.holding.lose()
            elif self._there:
                keeper.holding.resume()
            await keeper.run()
        finally:
            self._keepers.remove(keeper)

    async def _listen(self) -> None:
        """Hear the others for as long as that works; raises ValkeyLost when it does not from the beginning on."""
        hearing = asyncio.timeout(None)
        # Ended by who loses it in another way: only who can listen anew is back.
        try:
            async with self._book.listen() as messages, hearing:
                self._hearing = hearing
                await self._come_back()
                # A connection that is gone may be the only thing that is, or the server was started anew.
                with suppress(ValkeyLost):
                    await self._hear(messages)
                self._state()
        except TimeoutError:
            if not hearing.expired():
                raise
        finally:
            self._hearing = None

    async def _come_back(self) -> None:
        """The book can be read: state what is held, and ask for more when the others have done the same."""
        start = await self._book.start()
        # One that can be read and not be written is none.
        await self._book.hold("nobody", "nothing", Ask(0, 0, ()))
        # A young one that was not known before may have had a predecessor, of which the others know.
        forgotten = start.age_s < self._settle_s if self._run_id is None else start.run_id != self._run_id
        self._run_id = start.run_id
        if forgotten:
            self._state()
            await asyncio.sleep(self._settle_s)
        self._there = True
        for keeper in self._keepers:
            keeper.holding.resume()
            keeper.tell()
        if self.lost:
            self.lost = False
            log.info("valkey returned")

    def _state(self) -> None:
        """Tell the book what is held, and take no more until it is known which book it is, and that it is complete."""
        self._there = False
        for keeper in self._keepers:
            keeper.holding.state()
            keeper.tell()

    async def _hear(self, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            for keeper in self._keepers:
                if keeper.name == message.name:
                    keeper.told(message.total, message.version)

    def _lose(self, error: ValkeyLost) -> None:
        if self._hearing is not None:
            self._hearing.reschedule(asyncio.get_running_loop().time())
            self._hearing = None
        if self.lost:
            return
        self.lost = True
        self._there = False
        log.warning("valkey lost", extra={"fields": {"why": str(error), "away": self._settings.away}})
        for keeper in self._keepers:
            keeper.holding.lose()
            keeper.tell()
