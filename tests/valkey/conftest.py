"""A Valkey for these tests."""

from collections.abc import Iterator

import pytest

from support.services import valkey


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with valkey() as url:
        yield url
