"""What tests of several directories share."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.services import postgres

# A hook. What runs no test by itself, but has others run them, reads no other file of this name than this one.
from support.tables import pytest_terminal_summary  # noqa: F401
from support.together import Together


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Where several processes run the tests, those of a group run in one of them, in their order."""
    return Together(config, log)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL for the whole run: for databases of one's own, or for one that ``empty_store`` empties first."""
    with postgres() as url:
        yield url
