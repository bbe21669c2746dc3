"""Journal, ingester and the process that writes the store, together."""

import time
from pathlib import Path

from corral.config import Config, StoreSettings, UsageSettings
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
