"""The store as tests make it and look into it: rows of exchanges, and their sums."""

import asyncio
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import StoreSettings
from corral.store.database import migrate, open_engine
from corral.store.usage_tables import exchange, usage_hour

Row = dict[str, Any]


def store_of(place: Path | str) -> StoreSettings:
    """A database's file, or the URL of a PostgreSQL."""
    if isinstance(place, Path):
        return StoreSettings(file=place)
    return StoreSettings(url=SecretStr(place))


def make_store(place: Path | str) -> None:
    """Make its tables."""
    asyncio.run(_with_engine(place, migrate))


def empty_store(place: Path | str) -> None:
    """Make it as if it had just been made."""

    async def empty(engine: AsyncEngine) -> None:
        await migrate(engine)
        async with engine.begin() as connection:
            for table in ("exchange", "usage_hour", "journal", "api_key"):
                await connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608  (constants)

    asyncio.run(_with_engine(place, empty))


def exchanges(place: Path | str) -> list[Row]:
    """All rows, in the order of their journals."""
    rows: list[Row] = asyncio.run(_with_engine(place, read_exchanges))
    return rows


def hours(place: Path | str) -> list[Row]:
    """All sums that are not nothing."""
    rows: list[Row] = asyncio.run(_with_engine(place, read_hours))
    return rows


async def read_exchanges(engine: AsyncEngine) -> list[Row]:
    async with engine.connect() as connection:
        asked = sa.select(exchange).order_by(exchange.c.journal, exchange.c.sequence)
        return [dict(row) for row in (await connection.execute(asked)).mappings()]


async def read_hours(engine: AsyncEngine) -> list[Row]:
    async with engine.connect() as connection:
        asked = sa.select(usage_hour).where(usage_hour.c.requests != 0)
        return [dict(row) for row in (await connection.execute(asked)).mappings()]


def summed(rows: list[Row]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What the sums by hour have to be for these rows: requests and tokens."""
    totals: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for row in rows:
        hour = int(row["ended"] // 3600 * 3600)
        key = (hour, row["client"], row["key_id"], row["model"], row["outcome"])
        before = totals.get(key, (0, 0, 0, 0))
        more = (1, row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"])
        totals[key] = tuple(a + b for a, b in zip(before, more, strict=True))
    return totals


def told_sums(rows: list[Row]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The sums by hour as the store has them, to be held against ``summed``."""
    key = ("hour", "client", "key_id", "model", "outcome")
    counts = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    return {tuple(row[name] for name in key): tuple(row[name] for name in counts) for row in rows}


async def _with_engine(place: Path | str, do: Any) -> Any:
    engine = open_engine(store_of(place))
    try:
        return await do(engine)
    finally:
        await engine.dispose()
