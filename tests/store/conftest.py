"""Stores on both databases."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from corral.config import StoreSettings
from support.services import fresh_database


@pytest.fixture(params=["sqlite", "postgresql"])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    """Where an empty store may be made."""
    if request.param == "sqlite":
        return StoreSettings(file=tmp_path / "deep" / "corral.db")
    return StoreSettings(url=SecretStr(fresh_database(request.getfixturevalue("postgres_url"))))
