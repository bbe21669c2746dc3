"""The process that writes the store, as Corral asks it."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from corral.config import StoreSettings
from corral.core.price import Price
from corral.store.take import Taken, Task
from corral.store.taker import Child, TakerFailed
from support.books import exchanges
from support.journals import finish, journal_in, record_of
from support.run import async_test


def task_of(directory: Path, count: int) -> Task:
    """A file of a journal that is complete."""
    journal = journal_in(directory / "journal")
    for number in range(count):
        finish(journal, record_of(number))
    path, run = journal.files[0].path, journal.run
    journal.shut()
    journal.leave()
    return Task(run, 1, str(path), path.stat().st_size, {"llama": Price(1.0, None, 2.0)})


def test_it_takes_a_file_once(tmp_path: Path) -> None:
    place = tmp_path / "corral.db"

    @async_test
    async def take_twice() -> None:
        child = Child(StoreSettings(file=place))
        task = task_of(tmp_path, 5)
        assert await child.take(task) == Taken(task.size, rows=5)
        assert await child.take(task) == Taken(task.size)
        await child.close()

    take_twice()
    rows = exchanges(place)
    assert len(rows) == 5
    assert rows[1]["cost"] == pytest.approx((1001 + 2 * 3) / 1e6)


@async_test
async def test_what_it_cannot_do_is_told_and_it_goes_on(tmp_path: Path) -> None:
    child = Child(StoreSettings(file=tmp_path / "corral.db"))
    with pytest.raises(TakerFailed, match="FileNotFoundError"):
        await child.take(Task("ab" * 8, 1, str(tmp_path / "nothing"), 9, {}))
    task = task_of(tmp_path, 2)
    assert (await child.take(task)).rows == 2
    await child.close()


@async_test
async def test_one_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    child = Child(StoreSettings(file=tmp_path / "corral.db"))
    first = task_of(tmp_path, 2)
    await child.take(first)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    second = task_of(tmp_path, 3)
    with pytest.raises((TakerFailed, OSError)):
        await child.take(second)
    assert (await child.take(second)).rows == 3
    await child.close()


@async_test
async def test_who_stops_waiting_for_it_gets_no_old_answer_later(tmp_path: Path) -> None:
    child = Child(StoreSettings(file=tmp_path / "corral.db"))
    first, second = task_of(tmp_path, 2), task_of(tmp_path, 3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await child.take(first)
    assert (await child.take(second)).rows == 3
    await child.close()
