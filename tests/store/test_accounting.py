"""Journal, ingester and the process that writes the store, together."""

import asyncio
import shutil
import sys
import time
from pathlib import Path

import pytest

from corral.config import Config, StoreSettings, UsageSettings
from corral.core.record import Outcome
from corral.store.accounting import Accounting
from corral.store.opened import Store
from support.books import read_exchanges, store_of
from support.journals import finish, journal_in, record_of
from support.run import async_test


def config_in(directory: Path) -> Config:
    usage = UsageSettings(journal_dir=directory / "journal")
    return Config(store=StoreSettings(file=directory / "corral.db"), usage=usage)


def leave_a_journal(directory: Path, count: int) -> int:
    """As one that is killed; the tokens of its exchanges."""
    journal = journal_in(directory / "journal")
    tokens = 0
    for number in range(count):
        record = record_of(number)
        record.opened_unix_s = time.time()
        finish(journal, record)
        tokens += record.usage.total_tokens
    journal.leave()
    return tokens


@async_test
async def test_what_was_spent_counts_what_a_killed_corral_has_left(tmp_path: Path) -> None:
    tokens = leave_a_journal(tmp_path, 20)
    store = Store(store_of(tmp_path / "corral.db"))
    books = Accounting(config_in(tmp_path), store)
    async with books.running():
        assert await books.spent(time.time()) == {"client:ann": (tokens, tokens)}
    assert len(await read_exchanges(store.engine)) == 20
    await store.close()


@async_test
async def test_what_is_written_until_the_end_is_in_the_store_then(tmp_path: Path) -> None:
    store = Store(store_of(tmp_path / "corral.db"))
    books = Accounting(config_in(tmp_path), store)
    async with books.running():
        await books.ingester.caught_up.wait()
        for number in range(5):
            record = record_of(number)
            record.opened_unix_s = time.time()
            books.journal.seal(record)
            books.journal.close(record)
    assert [row["outcome"] for row in await read_exchanges(store.engine)] == ["ok"] * 5
    assert list((tmp_path / "journal").iterdir()) == []
    await store.close()


@async_test
async def test_a_journal_that_cannot_be_taken_keeps_no_other_from_being_taken(tmp_path: Path) -> None:
    journal = journal_in(tmp_path / "journal")
    finish(journal, record_of(0, outcome=Outcome.REFUSED))
    journal.leave()
    (spoilt,) = (tmp_path / "journal").iterdir()
    # The same exchange twice, as no Corral writes it.
    with spoilt.open("ab") as file:
        file.write(spoilt.read_bytes().splitlines(keepends=True)[1])
    tokens = leave_a_journal(tmp_path, 3)
    store = Store(store_of(tmp_path / "corral.db"))
    books = Accounting(config_in(tmp_path), store)
    async with books.running(), asyncio.timeout(20):
        finish(books.journal, record_of(7))
        while books.ingester.rows < 4:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.01)
        assert (await books.spent(time.time()))["client:ann"][0] >= tokens
    assert spoilt.exists()
    await store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a file without a name is read by way of /proc")
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "deleted"])
@async_test
async def test_a_journal_that_is_taken_away_is_read_all_the_same_and_followed_by_another(
    tmp_path: Path, moved: bool
) -> None:
    store = Store(store_of(tmp_path / "corral.db"))
    config = config_in(tmp_path)
    books = Accounting(config, store)
    async with books.running():
        await books.ingester.caught_up.wait()
        finish(books.journal, record_of(0))
        if moved:
            config.usage.journal_dir.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(config.usage.journal_dir)
        async with asyncio.timeout(20):
            while books.ingester.rows < 1:  # noqa: ASYNC110  (nobody tells)
                await asyncio.sleep(0.01)
        assert books.journal.current is not None
        assert books.journal.current.found
        finish(books.journal, record_of(1))
    assert [row["request_id"] for row in await read_exchanges(store.engine)] == ["req-0", "req-1"]
    await store.close()
