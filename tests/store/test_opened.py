"""The store of a running Corral, at its end."""

import asyncio
import os
import signal

import pytest
from pydantic import SecretStr

from corral.config import StoreSettings
from corral.store.database import COMMAND_S, reading
from corral.store.opened import CLOSE_S, Store
from support.run import async_test
from support.services import POSTGRES_URL, fresh_database


@pytest.fixture
def url(postgres_url: str) -> str:
    return fresh_database(postgres_url)


@pytest.mark.skipif(bool(POSTGRES_URL), reason="stops processes of the database, which has to run here")
@async_test
async def test_a_database_that_stands_still_does_not_hold_up_the_end(url: str) -> None:
    store = Store(StoreSettings(url=SecretStr(url)))
    async with reading(store.engine) as connection:
        pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout((CLOSE_S + COMMAND_S) / 2):
            await store.close()
    finally:
        os.kill(pid, signal.SIGCONT)
