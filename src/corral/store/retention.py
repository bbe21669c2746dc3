"""Deletes what is to be kept no longer, a little at a time, so that nobody waits for it."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import UsageSettings
from corral.store.database import writing
from corral.store.usage_tables import exchange, journal, usage_hour

DAY_S = 86400
# In one transaction.
ROWS_AT_ONCE = 2000


async def forget(engine: AsyncEngine, settings: UsageSettings, now: float) -> None:
    """Delete single exchanges and sums that are older than the settings say."""
    if settings.keep_days:
        async with engine.connect() as connection:
            journals = (await connection.execute(sa.select(journal.c.id))).scalars().all()
        for each in journals:
            while await _forget_exchanges(engine, each, now - settings.keep_days * DAY_S):
                pass
    if settings.keep_sums_days:
        while await _forget_hour(engine, now - settings.keep_sums_days * DAY_S):
            pass


async def _forget_exchanges(engine: AsyncEngine, of: int, before: float) -> bool:
    """Of one journal, whose rows are as old as their order says; True when there may be more."""
    here = exchange.c.journal == of
    oldest = sa.select(exchange.c.sequence, exchange.c.ended).where(here).order_by(exchange.c.sequence)
    async with engine.connect() as connection:
        rows = (await connection.execute(oldest.limit(ROWS_AT_ONCE))).all()
    last = None
    for sequence, ended in rows:
        if ended >= before:
            break
        last = sequence
    if last is None:
        return False
    async with writing(engine) as connection:
        await connection.execute(exchange.delete().where(here, exchange.c.sequence <= last))
    return bool(rows[-1].sequence == last)


async def _forget_hour(engine: AsyncEngine, before: float) -> bool:
    """The oldest hour; True when there may be more."""
    async with engine.connect() as connection:
        oldest = (await connection.execute(sa.select(sa.func.min(usage_hour.c.hour)))).scalar_one()
    if oldest is None or oldest >= before:
        return False
    async with writing(engine) as connection:
        await connection.execute(usage_hour.delete().where(usage_hour.c.hour == oldest))
    return True
