"""The database of keys and usage: SQLite in a file, or PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from corral.config import StoreSettings
from corral.core.errors import StoreUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"

# How long a writer waits for another one of SQLite's; what takes longer is an error, and tried again.
BUSY_S = 5.0
# What a database that is away, locked or full makes its drivers raise; asyncpg's own pass while it connects, and so do
# those of a host and a port that cannot be.
FAILURES = (
    *(SQLAlchemyError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    *(UnicodeError, OverflowError),
)
# A database that does not answer is away.
CONNECT_S = 5.0
COMMAND_S = 30.0


def open_engine(settings: StoreSettings) -> AsyncEngine:
    """The engine of the store, which connects when it is first used; ``dispose`` of it at the end."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        # Where there can be none, connecting says so.
        with suppress(OSError):
            settings.file.parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(url, connect_args={"timeout": BUSY_S}, hide_parameters=True)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    limits = {"timeout": CONNECT_S, "command_timeout": COMMAND_S}
    return create_async_engine(url, connect_args=limits, hide_parameters=True, pool_size=2, pool_recycle=300)


def database_url(settings: StoreSettings) -> URL:
    """Where the store is, in SQLAlchemy's terms."""
    if settings.url is None:
        return URL.create("sqlite+aiosqlite", database=str(settings.file))
    url = make_url(settings.url.get_secret_value()).set(drivername="postgresql+asyncpg")
    # libpq's name, by which everybody knows it; asyncpg takes the same words by its own.
    told = url.query.get("sslmode")
    return url if told is None else url.difference_update_query(["sslmode"]).update_query_dict({"ssl": told})


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for queries; raises StoreUnavailable when the database fails."""
    with _translated():
        async with engine.connect() as connection:
            yield connection


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that writes, committed when the block ends well; raises StoreUnavailable when that fails."""
    with _translated():
        async with engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # Two that began with reading could not both go on to write.
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


@contextmanager
def _translated() -> Iterator[None]:
    """A database's errors can hold its address, and belong into no answer."""
    try:
        yield
    except FAILURES as error:
        raise StoreUnavailable(
            f"the store does not work ({type(error).__name__}); try again", retry_after_s=1.0
        ) from error


async def migrate(engine: AsyncEngine) -> None:
    """Bring the tables up to what this version of Corral knows; several may do so at once."""
    async with writing(engine) as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Until the end of the transaction: others wait here, and then find everything done.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(716253441)")
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnavailable("the store is of a newer Corral; run that version", retry_after_s=1.0) from error


def _prepare_sqlite(connection: Any, _: object) -> None:  # noqa: ANN401  (SQLAlchemy's adapter)
    # Else Python's module would begin transactions where it thinks fit; ``writing`` begins ours.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Readers and one writer at a time do not wait for each other, and a commit survives the death of this process.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
