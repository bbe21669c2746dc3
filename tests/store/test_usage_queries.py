"""What the store answers about past usage, and what it forgets, on both databases."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import UsageSettings
from corral.core.price import Price
from corral.core.record import Outcome, Record
from corral.core.usage_report import By, Every, Question
from corral.store.database import migrate, open_engine
from corral.store.ingest import Ingester
from corral.store.retention import forget
from corral.store.tables import api_key
from corral.store.take import Taker
from corral.store.usage import spent, usage_of
from support.books import empty_store, read_exchanges, read_hours, store_of
from support.journals import finish, journal_in, record_of

DAY_S = 86400
# Noon in the middle of a month.
NOON = 1_763_208_000.0


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    if request.param == "sqlite":
        return tmp_path / "corral.db"
    url: str = request.getfixturevalue("postgres_url")
    empty_store(url)
    return url


def on(place: Path | str, do: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
    """What it returns, with an engine of a store that has its tables."""

    async def run() -> Any:
        engine = open_engine(store_of(place))
        try:
            await migrate(engine)
            return await do(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def ended(number: int, when: float, **of: Any) -> Record:
    """An exchange that ended then."""
    record = record_of(number, **of)
    record.opened_unix_s = when - 4.5
    return record


async def take(engine: AsyncEngine, directory: Path, records: list[Record]) -> None:
    journal = journal_in(directory)
    ingester = Ingester(
        Taker(engine),
        journal,
        UsageSettings(journal_dir=directory, keep_days=0, keep_sums_days=0),
        {"llama": Price(1.0)},
    )
    for record in records:
        finish(journal, record)
    journal.shut()
    await ingester.turn()
    assert ingester.rows == len(records)
    ingester.leave()
    journal.leave()


def test_sums_answer_what_is_asked(place: Path | str, tmp_path: Path) -> None:
    records = [
        ended(1, NOON),
        ended(2, NOON, client="bob"),
        ended(3, NOON - DAY_S, outcome=Outcome.UPSTREAM_ERROR),
        ended(4, NOON, key_id="k1"),
    ]

    async def ask(engine: AsyncEngine) -> list[list[tuple[Any, ...]]]:
        await take(engine, tmp_path, records)
        since = NOON - 2 * DAY_S
        questions = [
            Question(since, NOON + 1, By.CLIENT),
            Question(since, NOON + 1, By.KEY, client="ann"),
            Question(since, NOON + 1, None, Every.DAY),
            Question(NOON - 1, NOON + 1, By.MODEL, key_id=""),
            Question(since, NOON + 1, By.CLIENT, model="other"),
            Question(since, NOON - 3601),
        ]
        return [
            [(each.name, each.requests, each.outcomes.get("ok", 0)) for each in await usage_of(engine, question)]
            for question in questions
        ]

    assert on(place, ask) == [
        [("ann", 3, 2), ("bob", 1, 1)],
        [("", 2, 1), ("k1", 1, 1)],
        [("", 1, 0), ("", 3, 3)],
        [("llama", 2, 2)],
        [],
        [("", 1, 0)],
    ]


def test_budgets_begin_with_what_was_spent_today_and_this_month(place: Path | str, tmp_path: Path) -> None:
    records = [
        ended(1, NOON),
        ended(2, NOON - DAY_S),
        ended(3, NOON - 20 * DAY_S),
        ended(4, NOON, key_id="k1", outcome=Outcome.CUT),
        ended(5, NOON - DAY_S, client="bob"),
    ]

    async def ask(engine: AsyncEngine) -> dict[str, tuple[int, int]]:
        await take(engine, tmp_path, records)
        return await spent(engine, NOON + 60)

    tokens = {number: record_of(number).usage.total_tokens for number in range(1, 6)}
    assert on(place, ask) == {
        "client:ann": (tokens[1], tokens[1] + tokens[2]),
        "key:k1": (tokens[4], tokens[4]),
        "client:bob": (0, tokens[5]),
    }


def test_a_key_is_told_when_it_was_used_last(place: Path | str, tmp_path: Path) -> None:
    async def ask(engine: AsyncEngine) -> dict[str, float | None]:
        async with engine.begin() as connection:
            for key_id, used in (("k1", None), ("k2", NOON + 99), ("k3", None)):
                values = {"id": key_id, "digest": key_id.encode(), "prefix": "", "client": "ann", "name": ""}
                rest = {
                    "grants": "{}",
                    "priority": "default",
                    "weight": 1.0,
                    "created": 0.0,
                    "last_used": used,
                    "version": 1,
                }
                await connection.execute(api_key.insert().values(values | rest))
        await take(engine, tmp_path, [ended(n, NOON + n, key_id=key) for n, key in enumerate(("k1", "k2", "k1"))])
        async with engine.connect() as connection:
            rows = await connection.execute(sa.select(api_key.c.id, api_key.c.last_used))
            return {row.id: row.last_used for row in rows}

    assert on(place, ask) == {"k1": NOON + 2, "k2": NOON + 99, "k3": None}


def test_what_is_too_old_is_forgotten(place: Path | str, tmp_path: Path) -> None:
    ages = (100, 40, 31, 29, 1, 0)
    now = time.time()

    async def ask(engine: AsyncEngine) -> tuple[int, int]:
        await take(engine, tmp_path, [ended(n, now - age * DAY_S) for n, age in enumerate(ages)])
        await forget(engine, UsageSettings(keep_days=30, keep_sums_days=90), now)
        return len(await read_exchanges(engine)), len(await read_hours(engine))

    assert on(place, ask) == (3, 5)


def test_a_clock_that_is_set_back_loses_and_doubles_nothing(place: Path | str, tmp_path: Path) -> None:
    async def ask(engine: AsyncEngine) -> list[tuple[int, float]]:
        await take(engine, tmp_path, [ended(n, NOON - n * 5000) for n in range(5)])
        return [(row["sequence"], row["ended"]) for row in await read_exchanges(engine)]

    assert on(place, ask) == [(n + 1, NOON - n * 5000) for n in range(5)]
