"""Keys and usage: what a Corral that has a store runs beside the rest. Imported only where there is a store."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

from corral.config import Config
from corral.core.api_key import StoredKey
from corral.core.errors import StoreUnavailable
from corral.observe.readings import Instrument, Reading
from corral.pipeline.authenticate import StoredKeys
from corral.store.accounting import Accounting
from corral.store.key_watch import KeyWatch
from corral.store.keys import KeyStore
from corral.store.opened import Store
from corral.web.keys import Keys

OnKeys = Callable[[Sequence[StoredKey], bool], None]
# Told of an account: its tokens of the day and of the month of a time, in seconds since 1970.
OnSpent = Callable[[str, int, int, float], None]

# So long the start waits for keys and budgets; a store that is slower is read while requests are served.
FIRST_READ_S = 5.0
# How often budgets are looked up anew: other Corrals may use them too, and a Valkey can lose what it has counted.
SPENT_EVERY_S = 300.0
SPENT_RETRY_S = 5.0


class Tenancy:
    """The store, who keeps the keys of this process true to it, and who keeps the books."""

    def __init__(self, config: Config, on_keys: OnKeys, on_spent: OnSpent) -> None:
        """``on_keys`` is told of what has changed in ``stored``, and whether it is all there is."""
        self.stored = StoredKeys()
        self._on_keys = on_keys
        self._on_spent = on_spent
        self._store = Store(config.store)
        key_store = KeyStore(self._store.engine, time.time)
        self._watch = KeyWatch(key_store, self._store.prepare, config.store.sync_s, self._learn)
        self.keys = Keys(key_store, self._watch.try_refresh, time.time)
        self.books = Accounting(config, self._store)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the store and keep the books within the block; it begins when the keys have been read, or soon."""
        try:
            async with asyncio.TaskGroup() as tasks, self.books.running():
                with suppress(TimeoutError):
                    async with asyncio.timeout(FIRST_READ_S):
                        await self._watch.try_refresh()
                        await self._restore_budgets()
                own = [
                    tasks.create_task(self._watch.run(), name="corral-keys"),
                    tasks.create_task(self._keep_budgets(), name="corral-budgets"),
                ]
                try:
                    yield
                finally:
                    for task in own:
                        task.cancel()
        finally:
            await self._store.close()

    def readings(self) -> Iterator[Reading]:
        """What is true of the books now, for /metrics."""
        yield Reading(Instrument.USAGE_LAG, self.books.ingester.lag_bytes)
        yield Reading(Instrument.USAGE_WAITING, self.books.journal.kept)
        yield Reading(Instrument.USAGE_LOST, self.books.journal.lost)
        yield Reading(Instrument.USAGE_ROWS, self.books.ingester.rows)

    async def _keep_budgets(self) -> None:
        while True:
            restored = await self._restore_budgets()
            await asyncio.sleep(SPENT_EVERY_S if restored else SPENT_RETRY_S)

    async def _restore_budgets(self) -> bool:
        """Tell of what was spent, also before this process began; False while the store is away."""
        now = time.time()
        try:
            accounts = await self.books.spent(now)
        except StoreUnavailable:
            # Who keeps the books has said so.
            return False
        for account, (day, month) in accounts.items():
            self._on_spent(account, day, month, now)
        return True

    def _learn(self, keys: Sequence[StoredKey], anew: bool) -> None:
        self.stored.learn(keys, anew=anew)
        self._on_keys(keys, anew)
