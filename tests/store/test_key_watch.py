"""A process learns of changes in the store, and goes on with what it knows while the store is away."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from corral.config import StoreSettings
from corral.core.api_key import KeyStanding
from corral.core.errors import StoreUnavailable
from corral.pipeline.authenticate import StoredKeys
from corral.store.database import writing
from corral.store.key_watch import KeyWatch
from corral.store.keys import KeyStore
from corral.store.opened import Store
from corral.store.tables import api_key, keyring
from corral.store.terms import KeyTerms
from support.run import async_test


class Watched:
    """A store, and a process's picture of it; the store can be taken away."""

    def __init__(self, settings: StoreSettings) -> None:
        self.store = Store(settings)
        self.keys = KeyStore(self.store.engine, lambda: 1000.0)
        self.known = StoredKeys()
        self.learned = 0
        self.away = False
        self.watch = KeyWatch(self.keys, self.prepare, 60, self.learn)

    async def prepare(self) -> None:
        if self.away:
            raise StoreUnavailable("away")
        await self.store.prepare()

    def learn(self, keys: Any, anew: bool) -> None:
        self.learned += 1
        self.known.learn(keys, anew=anew)

    def clients(self) -> set[str]:
        return {key.client for key in self.known.keys.values()}


@async_test
async def test_changes_are_learned_and_nothing_is_read_without_one(store_settings: StoreSettings) -> None:
    watched = Watched(store_settings)
    await watched.watch.refresh()
    assert (watched.known.read, watched.clients(), watched.learned) == (True, set(), 1)
    key, _ = await watched.keys.create(KeyTerms(client="one"))
    await watched.watch.refresh()
    await watched.watch.refresh()
    assert (watched.clients(), watched.learned) == ({"one"}, 2)
    await watched.keys.revoke(key.id)
    await watched.watch.refresh()
    assert watched.known.keys[key.id].revoked == 1000.0
    await watched.store.close()


@async_test
async def test_a_store_that_is_away_changes_nothing_of_what_is_known(tmp_path: Path) -> None:
    watched = Watched(StoreSettings(file=tmp_path / "corral.db"))
    watched.away = True
    await watched.watch.try_refresh()
    assert not watched.known.read
    watched.away = False
    await watched.watch.try_refresh()
    await watched.keys.create(KeyTerms(client="one"))
    await watched.watch.try_refresh()
    watched.away = True
    await watched.watch.try_refresh()
    assert watched.clients() == {"one"}
    watched.away = False
    await watched.keys.create(KeyTerms(client="two"))
    await watched.watch.try_refresh()
    assert watched.clients() == {"one", "two"}
    await watched.store.close()


@async_test
async def test_a_store_that_was_put_back_to_an_older_state_is_read_anew(tmp_path: Path) -> None:
    watched = Watched(StoreSettings(file=tmp_path / "corral.db"))
    await watched.store.prepare()
    await watched.keys.create(KeyTerms(client="one"))
    two, _ = await watched.keys.create(KeyTerms(client="two"))
    await watched.watch.refresh()
    async with writing(watched.store.engine) as connection:
        await connection.execute(api_key.delete().where(api_key.c.id == two.id))
        await connection.execute(update(keyring).values(version=keyring.c.version - 1))
    await watched.watch.refresh()
    assert watched.clients() == {"one"}
    await watched.store.close()


@async_test
async def test_a_key_that_is_not_understood_any_more_is_not_gone_by_as_it_was(tmp_path: Path) -> None:
    watched = Watched(StoreSettings(file=tmp_path / "corral.db"))
    await watched.store.prepare()
    key, _ = await watched.keys.create(KeyTerms(client="one"))
    await watched.watch.refresh()
    async with writing(watched.store.engine) as connection:
        # As a newer Corral may write and revoke it.
        await connection.execute(update(keyring).values(version=keyring.c.version + 1))
        version = select(keyring.c.version).scalar_subquery()
        await connection.execute(update(api_key).values(grants='{"new": 1}', revoked=5.0, version=version))
    await watched.watch.refresh()
    assert watched.known.keys[key.id].standing(0) is KeyStanding.REVOKED
    await watched.store.close()


@async_test
async def test_a_store_of_a_newer_corral_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = StoreSettings(file=tmp_path / "corral.db")
    newer = Watched(settings)
    await newer.store.prepare()
    async with writing(newer.store.engine) as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'newer'")
    await newer.store.close()
    watched = Watched(settings)
    await watched.watch.try_refresh()
    assert (watched.watch.away, watched.known.read) == (True, False)
    assert "newer Corral" in str([record.__dict__.get("fields") for record in caplog.records])
    await watched.store.close()


@pytest.mark.parametrize("place", ["file/corral.db", "n" * 300])
@async_test
async def test_a_store_that_there_cannot_be_is_away(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    watched = Watched(StoreSettings(file=tmp_path / place))
    await watched.watch.try_refresh()
    assert (watched.watch.away, watched.known.read) == (True, False)
    await watched.store.close()
    # aiosqlite's, which is told to end when it cannot connect, and waited for by nobody.
    while any("connection_worker" in thread.name for thread in threading.enumerate()):  # noqa: ASYNC110  (as above)
        await asyncio.sleep(0.001)


def test_a_file_of_which_nobody_can_tell_whether_it_exists_is_a_store(tmp_path: Path) -> None:
    """As one in a directory that may not be entered: to say that there is none would open the door."""
    assert StoreSettings(file=tmp_path / ("n" * 300)).used
    assert not StoreSettings(file=tmp_path / "corral.db").used


@pytest.mark.parametrize("host", ["n" * 70, "a..b", "127.0.0.1:99999"])
@async_test
async def test_a_database_at_an_address_that_cannot_be_is_away(host: str) -> None:
    watched = Watched(StoreSettings(url=SecretStr(f"postgresql://{host}/db")))
    await watched.watch.try_refresh()
    assert watched.watch.away
    await watched.store.close()
