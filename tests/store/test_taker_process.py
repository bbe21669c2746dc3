"""The process that writes the store: what it runs, and what becomes of one that does not answer."""

from pathlib import Path

import pytest

from corral.config import StoreSettings
from corral.store.take import Task
from corral.store.taker import Child, TakerFailed
from support.run import async_test


@async_test
async def test_it_runs_nothing_of_the_directory_that_corral_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    child = Child(StoreSettings(file=tmp_path / "corral.db"))
    try:
        with pytest.raises(TakerFailed, match="FileNotFoundError"):
            await child.take(Task("run", 1, str(tmp_path / "nothing"), 1, {}))
    finally:
        await child.close()
