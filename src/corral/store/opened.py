"""The store that a running Corral uses."""

import asyncio
from contextlib import suppress

from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import StoreSettings
from corral.store.database import migrate, open_engine

# How long a database may take to say goodbye.
CLOSE_S = 2.0


class Store:
    """The engine, and whether its tables are as this version of Corral knows them. One writer: ``prepare``."""

    def __init__(self, settings: StoreSettings) -> None:
        self.engine: AsyncEngine = open_engine(settings)
        self._prepared = False
        self._preparing = asyncio.Lock()

    async def prepare(self) -> None:
        """Bring the tables up to date, once; raises StoreUnavailable as long as the database is away."""
        async with self._preparing:
            if not self._prepared:
                await migrate(self.engine)
                self._prepared = True

    async def close(self) -> None:
        """Close all connections, without waiting for a database that does not answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.engine.dispose()
