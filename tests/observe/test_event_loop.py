"""How many tasks the event loop has, and how late it is."""

import asyncio
import time

from prometheus_client.parser import text_string_to_metric_families

from corral.observe.event_loop import INTERVAL_S, tasks, watched_lag
from corral.observe.metrics import Metrics
from corral.observe.readings import Instrument
from support.virtual_time import advance, in_virtual_time


def task_count() -> float:
    (reading,) = tasks()
    assert reading.instrument is Instrument.TASKS
    return reading.value


@in_virtual_time
async def test_a_task_counts_until_it_has_ended() -> None:
    before = task_count()
    ends = asyncio.Event()
    task = asyncio.create_task(ends.wait(), name="counted")
    during = task_count()
    ends.set()
    await task
    assert (during, task_count()) == (before + 1, before)


def test_where_no_loop_runs_there_are_no_tasks_to_tell_of() -> None:
    assert list(tasks()) == []


@in_virtual_time
async def test_a_loop_that_is_on_time_is_late_by_nothing() -> None:
    told: list[float] = []
    with watched_lag(told.append, asyncio.get_running_loop().time):
        for _ in range(3):
            await advance(INTERVAL_S)
    assert told == [0.0, 0.0, 0.0]


@in_virtual_time
async def test_a_loop_that_was_busy_when_the_timer_was_due_is_late_by_so_much() -> None:
    told: list[float] = []
    with watched_lag(told.append, asyncio.get_running_loop().time):
        # As if one callback had taken so long: the loop gets to its timers only then.
        await advance(INTERVAL_S + 0.25)
        await advance(INTERVAL_S)
    assert told == [0.25, 0.0]


@in_virtual_time
async def test_nothing_is_measured_after_the_block() -> None:
    told: list[float] = []
    with watched_lag(told.append, asyncio.get_running_loop().time):
        pass
    await advance(10 * INTERVAL_S)
    assert told == []


def test_a_callback_that_blocks_a_real_loop_is_told() -> None:
    async def block() -> float:
        told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        with watched_lag(told.set_result, time.monotonic):
            # That the loop stands still is what is measured here.
            time.sleep(INTERVAL_S + 0.2)  # noqa: ASYNC251
            return await told

    assert asyncio.run(block()) >= 0.2


def test_how_late_the_loop_was_is_in_the_metrics() -> None:
    metrics = Metrics()
    for lag_s in (0.0, 0.03, 20.0):
        metrics.late(lag_s)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    told = {
        (sample.name.removeprefix("corral_event_loop_lag_seconds"), sample.labels.get("le")): sample.value
        for sample in families["corral_event_loop_lag_seconds"].samples
    }
    assert (told["_count", None], told["_sum", None]) == (3, 20.03)
    assert (told["_bucket", "0.001"], told["_bucket", "0.025"], told["_bucket", "0.05"]) == (1, 1, 2)
    assert (told["_bucket", "10.0"], told["_bucket", "+Inf"]) == (2, 3)
