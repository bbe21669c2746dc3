"""Brings changes of keys from the store to this process."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from corral.core.api_key import StoredKey
from corral.core.errors import StoreUnavailable
from corral.store.keys import KeyStore

log = logging.getLogger("corral.store")


class KeyWatch:
    """Asks the store for what has changed, now and then. One writer: ``refresh``, one at a time.

    While the store is away, what was read last counts.
    """

    def __init__(
        self,
        store: KeyStore,
        prepare: Callable[[], Awaitable[None]],
        interval_s: float,
        learn: Callable[[Sequence[StoredKey], bool], None],
    ) -> None:
        """``prepare`` makes the store fit to be asked; ``learn`` is given keys, and whether these are all."""
        self._store = store
        self._prepare = prepare
        self._interval_s = interval_s
        self._learn = learn
        self._refreshing = asyncio.Lock()
        # The newest change that is known; None as long as nothing could be read.
        self._version: int | None = None
        self.away = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.try_refresh()
            await asyncio.sleep(self._interval_s)

    async def try_refresh(self) -> None:
        """As ``refresh``; a store that is away is told once, and not raised."""
        try:
            await self.refresh()
        except StoreUnavailable as error:
            if not self.away:
                fields = {"why": error.message, "keys": "as last read" if self._version else "not read yet"}
                log.warning("key store away", extra={"fields": fields})
            self.away = True
        else:
            if self.away:
                log.info("key store back")
            self.away = False

    async def refresh(self) -> None:
        """Learn what has changed since the last time; raises StoreUnavailable."""
        async with self._refreshing:
            await self._prepare()
            version = await self._store.version()
            if version == self._version:
                return
            # A store that was put back to an older state is read anew.
            anew = self._version is None or self._version > version
            keys = await self._store.all(after=0 if anew else self._version or 0)
            self._version = version
            self._learn(keys, anew)
