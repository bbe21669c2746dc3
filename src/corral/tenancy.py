"""Keys in a store: what a Corral that has one runs beside the rest. Imported only where there is a store."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from corral.config import StoreSettings
from corral.core.api_key import StoredKey
from corral.pipeline.authenticate import StoredKeys
from corral.store.key_watch import KeyWatch
from corral.store.keys import KeyStore
from corral.store.opened import Store
from corral.web.keys import Keys

OnKeys = Callable[[Sequence[StoredKey], bool], None]

# So long the start waits for keys; a store that is slower is read while requests are served.
FIRST_READ_S = 5.0


class Tenancy:
    """The store, and who keeps the keys of this process true to it."""

    def __init__(self, settings: StoreSettings, on_keys: OnKeys) -> None:
        """``on_keys`` is told of what has changed in ``stored``, and whether it is all there is."""
        self.stored = StoredKeys()
        self._on_keys = on_keys
        self._store = Store(settings)
        key_store = KeyStore(self._store.engine, time.time)
        self._watch = KeyWatch(key_store, self._store.prepare, settings.sync_s, self._learn)
        self.keys = Keys(key_store, self._watch.try_refresh, time.time)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Watch the store within the block; it begins when the keys have been read, or that takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                await self._watch.try_refresh()
        watching = tasks.create_task(self._watch.run(), name="corral-keys")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await self._store.close()

    def _learn(self, keys: Sequence[StoredKey], anew: bool) -> None:
        self.stored.learn(keys, anew=anew)
        self._on_keys(keys, anew)
