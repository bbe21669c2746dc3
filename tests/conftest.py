"""What tests of several directories share."""

from collections.abc import Iterator

import pytest

from support.services import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL for the whole run: for databases of one's own, or for one that ``empty_store`` empties first."""
    with postgres() as url:
        yield url
