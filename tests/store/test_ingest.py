"""The store has what the journals have, once, whatever breaks off when."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from corral.config import UsageSettings
from corral.core.price import Price
from corral.core.record import Outcome, Record
from corral.core.sketch import Sketch
from corral.store.database import open_engine
from corral.store.ingest import Ingester
from corral.store.line import decoded
from corral.store.take import Taker
from support.books import (
    Row,
    empty_store,
    make_store,
    read_exchanges,
    read_hours,
    store_of,
    summed,
    told_sums,
)
from support.journals import finish, journal_in, record_of

PRICES = {"llama": Price(1.0, 0.1, 2.0)}
FILE_BYTES = 1500


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables; to make them takes longer than all the rest."""
    place = tmp_path_factory.mktemp("template") / "corral.db"
    make_store(place)
    return place


class Broken(Exception):
    """What a database says that breaks off."""


@contextmanager
def breaking(engine: AsyncEngine, at: int) -> Iterator[None]:
    """Within the block the statement of this number, and all behind it, fail."""
    count = 0

    def fail(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise Broken

    event.listen(engine.sync_engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", fail)


@dataclass
class Corrals:
    """One Corral after the other, each killed; and what all of their journals have had. Writer: the test."""

    directory: Path
    engine: AsyncEngine
    numbers: int = 0
    open_records: list[Record] = field(default_factory=list)
    # The whole content of each file there was.
    seen: dict[str, bytes] = field(default_factory=dict)

    def start(self) -> None:
        self.journal = journal_in(self.directory, FILE_BYTES)
        self.ingester = Ingester(
            Taker(self.engine), self.journal, UsageSettings(journal_dir=self.directory, keep_days=0), PRICES
        )

    def look(self) -> None:
        for path in self.directory.glob("*.journal"):
            self.seen[path.name] = path.read_bytes()

    def record(self, outcome: Outcome) -> Record:
        self.numbers += 1
        return record_of(self.numbers, client=f"client-{self.numbers % 3}", key_id="k1", outcome=outcome)

    async def act(self, action: tuple[str, Any]) -> None:
        match action:
            case ("end", outcome):
                finish(self.journal, self.record(outcome))
            case ("seal", outcome):
                self.open_records.append(self.record(outcome))
                self.journal.seal(self.open_records[-1])
            case ("close", _) if self.open_records:
                self.journal.close(self.open_records.pop(0))
            case ("take", None):
                await self.take()
            case ("take", at):
                with breaking(self.engine, at):
                    await self.take()
            case ("kill", torn):
                self.kill(torn)
                self.start()

    async def take(self) -> None:
        self.look()
        await self.ingester.turn()

    def kill(self, torn: int) -> None:
        """Nothing more is written but a part of the last line."""
        file = self.journal.current
        if torn and file is not None:
            with file.path.open("ab") as end:
                end.write(b'[99999,[],"ok","torn","and never ended'[:torn])
        self.look()
        self.ingester.leave()
        self.journal.leave()
        self.open_records.clear()

    def expected(self) -> dict[tuple[str, int], str]:
        """The outcome of each exchange in all journals: request id and sequence number tell it."""
        found: dict[tuple[str, int], str] = {}
        for run in {name.partition("-")[0] for name in self.seen}:
            ids: dict[int, str] = {}
            for name in sorted(name for name in self.seen if name.startswith(run)):
                content = self.seen[name]
                whole = content[: content.rfind(b"\n") + 1].partition(b"\n")[2]
                for line in decoded(whole)[0]:
                    for closing in line[1]:
                        sequence, outcome = (closing, "ok") if isinstance(closing, int) else closing[:2]
                        found[ids[sequence], sequence] = outcome
                    if line[0]:
                        ids[line[0]] = line[3]
                        found[line[3], line[0]] = line[2] or "unconfirmed"
        return found


async def lives(corrals: Corrals, actions: list[tuple[str, Any]]) -> tuple[list[Row], list[Row]]:
    """What the store has when all that happened has been taken in."""
    corrals.start()
    for action in actions:
        await corrals.act(action)
    corrals.kill(0)
    corrals.start()
    await corrals.take()
    assert not [
        path for path in corrals.seen if path[:16] != corrals.journal.run and (corrals.directory / path).exists()
    ]
    rows, sums = await read_exchanges(corrals.engine), await read_hours(corrals.engine)
    corrals.kill(0)
    return rows, sums


def assert_same(corrals: Corrals, rows: list[Row], sums: list[Row]) -> None:
    told = {(row["request_id"], row["sequence"]): row["outcome"] for row in rows}
    assert len(told) == len(rows)
    assert told == corrals.expected()
    assert told_sums(sums) == summed(rows)
    assert sum(each["cost"] for each in sums) == pytest.approx(sum(row["cost"] for row in rows))
    assert sum(each["slot_s"] for each in sums) == pytest.approx(sum(row["slot_s"] for row in rows))
    assert sum(Sketch.unpacked(each["ttft"]).count for each in sums) == len(rows)


outcomes = st.sampled_from([Outcome.OK, Outcome.OK, Outcome.CLIENT_GONE, Outcome.CUT, Outcome.UPSTREAM_ERROR])
actions = st.lists(
    st.one_of(
        st.tuples(st.just("end"), outcomes),
        st.tuples(st.just("seal"), outcomes),
        st.tuples(st.just("close"), st.none()),
        st.tuples(st.just("take"), st.one_of(st.none(), st.integers(0, 12))),
        st.tuples(st.just("kill"), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(actions)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_breaks_off_when_each_exchange_is_in_the_store_once(template: Path, actions: list[Any]) -> None:
    with TemporaryDirectory() as directory:
        place = Path(directory) / "corral.db"
        shutil.copy(template, place)
        asyncio.run(_assert_same_after(place, Path(directory) / "journal", actions))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 8])
def test_whatever_breaks_off_when_each_exchange_is_in_postgres_once(postgres_url: str, tmp_path: Path, at: int) -> None:
    empty_store(postgres_url)
    life = [("end", Outcome.OK)] * 9 + [("seal", Outcome.OK), ("take", at), ("close", None), ("end", Outcome.CUT)]
    actions = [*life, ("take", None), *life, ("kill", 9), *life, ("take", at), *life, ("take", None)]
    asyncio.run(_assert_same_after(postgres_url, tmp_path, actions))


async def _assert_same_after(place: Path | str, directory: Path, actions: list[Any]) -> None:
    engine = open_engine(store_of(place))
    try:
        corrals = Corrals(directory, engine)
        rows, sums = await lives(corrals, actions)
        assert_same(corrals, rows, sums)
    finally:
        await engine.dispose()
