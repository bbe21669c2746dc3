"""Who used what: the journal and what takes it into the store, as one part of a Corral."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from corral.config import Config
from corral.core.price import Price
from corral.core.usage_report import Question, UsageSum
from corral.store.ingest import STOP_S, Ingester
from corral.store.journal import Journal
from corral.store.opened import Store
from corral.store.taker import Child
from corral.store.usage import spent, usage_of


class Accounting:
    """Journal and ingester of one Corral. Writer of none of their state; ``running`` owns their task and process."""

    def __init__(self, config: Config, store: Store) -> None:
        """Who has opened the store closes it."""
        usage = config.usage
        self._store = store
        self.journal = Journal(usage.journal_dir, usage.journal_bytes, time.monotonic)
        self._child = Child(config.store)
        self.ingester = Ingester(self._child, self.journal, usage, prices_of(config))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the books within the block; what is missing in the store then is in the journal."""
        self.journal.open()
        task = asyncio.create_task(self.ingester.run(), name="corral-usage")
        try:
            yield
        finally:
            self.journal.shut()
            self.ingester.stop()
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S):
                        await task
            finally:
                self.ingester.leave()
                self.journal.leave()
                await self._child.close()

    async def usage_of(self, question: Question) -> list[UsageSum]:
        """Past usage, as far as the store has it; raises StoreUnavailable when it cannot be asked."""
        return await usage_of(self._store.engine, question)

    async def spent(self, now: float) -> dict[str, tuple[int, int]]:
        """Tokens of each account in the day and month (UTC) of a time, with what a Corral before has left behind.

        Raises StoreUnavailable.
        """
        await self.ingester.caught_up.wait()
        return await spent(self._store.engine, now)

    def change(self, config: Config) -> None:
        """Go by other prices from now on."""
        self.ingester.prices = prices_of(config)


def prices_of(config: Config) -> Mapping[str, Price]:
    """What the models cost that cost anything."""
    return {
        model.name: Price(model.price_input or 0.0, model.price_cached, model.price_output or 0.0)
        for model in config.models
        if model.price_input or model.price_cached or model.price_output
    }
