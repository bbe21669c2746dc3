"""Writes exchanges to the store: their rows, their sums by hour, and how far their journal has been read."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.core.sketch import Sketch
from corral.store.batch import COLUMNS, HOUR_S, UNCONFIRMED, Batch, Sum, SumKey, outcome_of
from corral.store.line import Closing, Line
from corral.store.tables import api_key
from corral.store.usage_tables import exchange, journal, usage_hour

# Rows that SQLite takes in one statement: each statement costs as much as some rows (measured).
ROWS_AT_ONCE = 32
# Any number: Corrals that add to the same sums take turns.
SUMS_LOCK = 716253442

KEY = ("hour", "client", "key_id", "model", "outcome")
COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "slot_s", "cost")
ADD_SUMS = sa.text(
    f"INSERT INTO usage_hour ({', '.join((*KEY, *COUNTS, 'ttft'))}) "  # noqa: S608  (constants)
    f"VALUES ({', '.join(f':{name}' for name in (*KEY, *COUNTS, 'ttft'))}) "
    f"ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET ttft = excluded.ttft, "
    + ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in COUNTS)
)

_INTO = f"INSERT INTO exchange ({', '.join(COLUMNS)}) VALUES "  # noqa: S608  (constants)
_PLACES = f"({', '.join('?' * len(COLUMNS))})"
INSERT_ONE = _INTO + _PLACES
INSERT_MANY = _INTO + ", ".join([_PLACES] * ROWS_AT_ONCE)
# The way in which asyncpg writes places.
INSERT_DOLLARS = f"{_INTO}({', '.join(f'${number}' for number in range(1, len(COLUMNS) + 1))})"


class Moved(Exception):
    """Another one has read this journal meanwhile."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a journal has been read; what stands before is in the store."""

    journal: int
    file: int
    position: int


async def place_of(connection: AsyncConnection, run: str) -> Place:
    """Where reading the files of a run goes on."""
    found = (await connection.execute(sa.select(journal).where(journal.c.run == run))).one_or_none()
    if found is not None:
        return Place(found.id, found.file, found.position)
    made = await connection.execute(
        journal.insert().values(run=run, file=1, position=0).returning(journal.c.id),
    )
    return Place(made.scalar_one(), 1, 0)


async def advance(connection: AsyncConnection, old: Place, new: Place) -> None:
    """The journal has been read so far; raises Moved when it was read from elsewhere."""
    here = (journal.c.id == old.journal) & (journal.c.file == old.file) & (journal.c.position == old.position)
    done = await connection.execute(journal.update().where(here).values(file=new.file, position=new.position))
    if done.rowcount != 1:
        raise Moved


async def insert(connection: AsyncConnection, rows: list[Line], *, last: bool = False) -> list[Line]:
    """Write single exchanges, in statements that are full; returns those that wait for more, or for the ``last``."""
    if connection.dialect.name != "sqlite":
        if rows:
            await connection.exec_driver_sql(INSERT_DOLLARS, [tuple(row) for row in rows])
        return []
    whole = len(rows) - len(rows) % ROWS_AT_ONCE
    if whole:
        starts = range(0, whole, ROWS_AT_ONCE)
        values = [tuple(chain.from_iterable(rows[start : start + ROWS_AT_ONCE])) for start in starts]
        await connection.exec_driver_sql(INSERT_MANY, values)
    if not last or whole == len(rows):
        return rows[whole:]
    await connection.exec_driver_sql(INSERT_ONE, [tuple(row) for row in rows[whole:]])
    return []


async def write(connection: AsyncConnection, batch: Batch) -> None:
    """Write what a batch comes to beside its rows."""
    for closing in batch.late:
        await _close(connection, batch, closing)
    if batch.sums:
        await _add(connection, batch.sums)
    for key_id, used in batch.last_used.items():
        later = sa.or_(api_key.c.last_used.is_(None), api_key.c.last_used < used)
        await connection.execute(api_key.update().where(api_key.c.id == key_id, later).values(last_used=used))


async def _close(connection: AsyncConnection, batch: Batch, closing: Closing) -> None:
    """How a row has ended that was written when nobody knew; what is gone by now stays so."""
    sequence, outcome, status, error_code = outcome_of(closing)
    this = (exchange.c.journal == batch.journal) & (exchange.c.sequence == sequence)
    columns = [exchange.c[name] for name in COLUMNS]
    found = await connection.execute(sa.select(*columns).where(this, exchange.c.outcome == UNCONFIRMED))
    row = found.one_or_none()
    if row is None:
        return
    batch.count(list(row), UNCONFIRMED, -1)
    batch.count(list(row), outcome)
    values: dict[str, Any] = {"outcome": outcome}
    if status:
        values |= {"status": status, "error_code": error_code}
    await connection.execute(exchange.update().where(this).values(values))


async def _add(connection: AsyncConnection, sums: dict[SumKey, Sum]) -> None:
    if connection.dialect.name == "postgresql":
        # Until the end of the transaction.
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SUMS_LOCK)))
    for number, client in {key[:2] for key in sums}:
        await _merge_sketches(connection, number, client, sums)
    values = [
        dict(zip(KEY, (int(key[0]) * HOUR_S, *key[1:]), strict=True))
        | {name: getattr(total, name) for name in COUNTS}
        | {"ttft": total.ttft.packed()}
        for key, total in sums.items()
    ]
    await connection.execute(ADD_SUMS, values)


async def _merge_sketches(connection: AsyncConnection, number: float, client: str, sums: dict[SumKey, Sum]) -> None:
    here = (usage_hour.c.hour == int(number) * HOUR_S) & (usage_hour.c.client == client)
    columns = (usage_hour.c.key_id, usage_hour.c.model, usage_hour.c.outcome, usage_hour.c.ttft)
    for key_id, model, outcome, ttft in await connection.execute(sa.select(*columns).where(here)):
        total = sums.get((number, client, key_id, model, outcome))
        if total is not None:
            total.ttft.merge(Sketch.unpacked(ttft))
