"""Models that are loaded when they are asked for, with processes that are fake llama-servers."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from corral.core.errors import NotReady
from corral.core.footprint import Footprint
from corral.core.lifecycle import Phase, State
from corral.upstream.local import UNUSED_S
from corral.upstream.supervisor import START_FAILURES
from support.children import alive, fake_engine
from support.fleets import LARGE, MIB, running
from support.run import async_test

A: dict[str, Any] = {"name": "a", "memory_bytes": LARGE}
B: dict[str, Any] = {"name": "b", "memory_bytes": LARGE}
C: dict[str, Any] = {"name": "c", "memory_bytes": LARGE}
# For one that loads, but not beside another that runs.
FOR_ONE = LARGE + 5 * MIB
SLOW = ("--load-s", "600")


# Loading.


@async_test
async def test_a_call_loads_its_model_and_those_that_wait_share_the_load(tmp_path: Path) -> None:
    async with running(tmp_path, A, B) as corral:
        assert corral.assembly.fleet.ready
        assert {model.phase for model in corral.loader.models.values()} == {Phase.UNLOADED}
        leases = await asyncio.gather(*(corral.lease("a") for _ in range(2)))
        assert {lease.replica.name for lease in leases} == {"a/0"}
        assert corral.model("a").phase is Phase.LOADED
        assert corral.model("b").phase is Phase.UNLOADED
        assert "start 1 of a" in corral.model("a").children[0].log_tail()[0]


@async_test
async def test_a_preloaded_model_is_loaded_at_the_start(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "preload": True}) as corral:
        await corral.until_phase("a", Phase.LOADED)


@pytest.mark.parametrize("fleet", [{"memory_bytes": FOR_ONE}, {}])
@async_test
async def test_nothing_goes_for_a_model_that_is_preloaded(tmp_path: Path, fleet: dict[str, Any]) -> None:
    apart = {} if fleet else {"group": "g"}
    preloaded = ({**model, "preload": True, **apart} for model in (A, B))
    async with running(tmp_path, *preloaded, **fleet) as corral:
        await corral.until_phase("a", Phase.LOADED)
        await corral.loader.until(lambda: not corral.model("b").wanted)
        assert (corral.model("b").phase, corral.model("a").departures) == (Phase.UNLOADED, {})
        # Who asks for it has it loaded all the same.
        await corral.use("b")


@async_test
async def test_a_model_that_is_preloaded_keeps_nobody_waiting(tmp_path: Path) -> None:
    preloaded = [{**model, "preload": True} for model in ({**A, "extra_args": SLOW}, B)]
    async with running(tmp_path, *preloaded, {**C, "memory_bytes": MIB}, memory_bytes=FOR_ONE) as corral:
        await corral.until_phase("a", Phase.LOADING)
        await corral.use("c")


@async_test
async def test_all_replicas_of_a_model_are_loaded(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "replicas": 2}) as corral:
        await corral.use("a")
        await corral.until(lambda: all(child.replica.ready for child in corral.model("a").children))
        leases = [await corral.lease("a") for _ in range(4)]
        assert {lease.replica.name for lease in leases} == {"a/0", "a/1"}


@async_test
async def test_who_cannot_wait_for_a_load_is_told_when_to_come_back_and_is_served_then(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "extra_args": ("--load-s", "1.5")}, unready_patience_s=0.3) as corral:
        with pytest.raises(NotReady, match="model 'a' is loading; try again later") as caught:
            await corral.lease("a")
        assert caught.value.retry_after_s
        await corral.until_phase("a", Phase.LOADED)
        await corral.use("a")
        assert len(corral.model("a").children[0].log_tail()) >= 1


@async_test
async def test_what_nobody_waits_for_any_more_is_not_loaded(tmp_path: Path) -> None:
    async with running(tmp_path, A, {**B, "extra_args": SLOW}, memory_bytes=FOR_ONE) as corral:
        (await corral.waiting("b")).cancel()
        waiter = await corral.waiting("a")
        waiter.cancel()
        await corral.until(lambda: not corral.assembly.fleet.pool("a").waiting)
        corral.loader.wake()
        await corral.loader.until(lambda: not corral.model("a").wanted)
        assert corral.model("a").phase is Phase.UNLOADED


# Making room.


@async_test
async def test_the_one_that_was_used_longest_ago_makes_room_and_is_gone_before_the_next_begins(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, C, memory_bytes=2 * LARGE) as corral:
        await corral.use("a")
        await corral.use("b")
        await corral.use("a")
        first, second = corral.pid("a"), corral.pid("b")
        waiter = await corral.waiting("c")
        await corral.until_phase("c", Phase.LOADING)
        assert not alive(second)
        assert alive(first)
        with await waiter:
            assert corral.model("b").phase is Phase.UNLOADED


@async_test
async def test_a_busy_model_stays_until_its_calls_are_over(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, memory_bytes=FOR_ONE, turn_s=600.0) as corral:
        with await corral.lease("a"):
            waiter = await corral.waiting("b")
            await corral.loader.until(lambda: corral.model("b").wanted)
            await corral.use("a")
            assert corral.model("a").phase is Phase.LOADED
        with await waiter:
            assert corral.model("a").phase is Phase.UNLOADED


@async_test
async def test_a_model_that_is_always_busy_yields_when_its_turn_is_over(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, memory_bytes=FOR_ONE, turn_s=0.3) as corral:
        lease = await corral.lease("a")
        pid = corral.pid("a")
        waiter = await corral.waiting("b")
        await corral.loader.until(lambda: corral.model("a").yielding)
        # Its own calls wait now, and are not lost.
        another = await corral.waiting("a")
        assert alive(pid)
        with lease:
            pass
        with await waiter:
            assert not alive(pid)
        with await another:
            pass


@async_test
async def test_a_model_takes_calls_again_when_nobody_needs_its_memory_any_more(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, memory_bytes=FOR_ONE, turn_s=0.3) as corral:
        with await corral.lease("a"):
            waiter = await corral.waiting("b")
            await corral.loader.until(lambda: corral.model("a").yielding)
            waiter.cancel()
            await corral.use("a")


@async_test
async def test_what_an_operator_does_to_a_model_that_yields_does_not_stop_it_from_yielding(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, memory_bytes=FOR_ONE, turn_s=0.3) as corral:
        with await corral.lease("a"):
            waiter = await corral.waiting("b")
            await corral.loader.until(lambda: corral.model("a").yielding)
            corral.loader.load(corral.model("a"))
            assert not corral.model("a").children[0].replica.ready
        with await waiter:
            pass


@async_test
async def test_a_loading_model_is_not_stopped_for_another(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "extra_args": ("--load-s", "1")}, B, memory_bytes=FOR_ONE, turn_s=0.1) as corral:
        first = await corral.waiting("a")
        await corral.until_phase("a", Phase.LOADING)
        second = await corral.waiting("b")
        with await first:
            assert corral.model("b").phase is Phase.UNLOADED
        with await second:
            pass


@async_test
async def test_a_pinned_model_is_never_stopped_and_what_does_not_fit_beside_it_is_refused_with_the_sum(
    tmp_path: Path,
) -> None:
    async with running(
        tmp_path, {**A, "pinned": True}, {**B, "memory_bytes": 2 * LARGE}, memory_bytes=FOR_ONE
    ) as corral:
        with pytest.raises(NotReady, match=r"^model 'b' needs 400 MiB of memory and the budget is 205 MiB$"):
            await corral.lease("b")
        await corral.use("a")
        with pytest.raises(NotReady, match="of which models that always stay loaded take"):
            await corral.lease("b")
        assert corral.model("a").phase is Phase.LOADED
        assert "needs 400 MiB" in (corral.model("b").error or "")


@async_test
async def test_of_a_group_one_is_loaded_at_a_time(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "group": "g"}, {**B, "group": "g"}, C) as corral:
        await corral.use("a")
        await corral.use("c")
        await corral.use("b")
        phases = [corral.model(name).phase for name in "abc"]
        assert phases == [Phase.UNLOADED, Phase.LOADED, Phase.LOADED]


@async_test
async def test_an_exclusive_model_is_loaded_alone(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, {**C, "exclusive": True}) as corral:
        await corral.use("a")
        await corral.use("b")
        await corral.use("c")
        assert [corral.model(name).phase for name in "abc"] == [Phase.UNLOADED, Phase.UNLOADED, Phase.LOADED]


@async_test
async def test_an_idle_model_ends_after_its_time(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "idle_ttl_s": 0.2}, B) as corral:
        await corral.use("b")
        with await corral.lease("a"):
            pid = corral.pid("a")
            await asyncio.sleep(0.3)
            assert corral.model("a").phase is Phase.LOADED
        await corral.until_phase("a", Phase.UNLOADED)
        assert not alive(pid)
        assert corral.model("b").phase is Phase.LOADED
        await corral.use("a")


# Dying for memory, and other failures.

DIES = """#!/bin/sh
# Dies for want of memory, as often as there are letters in the file.
case "$*" in *"--alias b "*)
    if [ -s {deaths} ]; then
        truncate -s -1 {deaths}
        echo "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 123" >&2
        exit 1
    fi;;
esac
exec {engine} "$@"
"""


def mortal_engine(directory: Path, deaths: int) -> None:
    """The engine of the fleets: the processes of model ``b`` die for memory so many times."""
    (directory / "inner").mkdir()
    inner = fake_engine(directory / "inner")
    counter = directory / "deaths"
    counter.write_text("x" * deaths)
    engine = directory / "fake-llama-server"
    engine.write_text(DIES.format(deaths=counter, engine=inner))
    engine.chmod(0o755)


@async_test
async def test_a_load_that_dies_for_memory_is_tried_once_more_when_all_that_is_idle_has_gone(tmp_path: Path) -> None:
    mortal_engine(tmp_path, deaths=1)
    async with running(tmp_path, A, B, C) as corral:
        await corral.use("a")
        with await corral.lease("c"):
            await corral.use("b")
            phases = [corral.model(name).phase for name in "abc"]
            assert phases == [Phase.UNLOADED, Phase.LOADED, Phase.LOADED]


@async_test
async def test_a_load_that_dies_for_memory_twice_is_given_up_with_the_reason(tmp_path: Path) -> None:
    mortal_engine(tmp_path, deaths=START_FAILURES)
    async with running(tmp_path, A, B) as corral:
        with pytest.raises(NotReady, match="could not be started"):
            await corral.lease("b")
        await corral.until_phase("b", Phase.FAILED)
        assert "failed to allocate" in (corral.model("b").error or "")
        assert (tmp_path / "deaths").read_text() == "x" * (START_FAILURES - 2)
        with pytest.raises(NotReady, match="could not be started"):
            await corral.lease("b")
        (tmp_path / "deaths").write_text("")
        corral.loader.load(corral.model("b"))
        await corral.use("b")


@async_test
async def test_a_process_that_is_killed_while_it_loads_counts_as_one_that_died_for_memory(tmp_path: Path) -> None:
    async with running(tmp_path, A, {**B, "extra_args": ("--load-s", "1")}) as corral:
        await corral.use("a")
        waiter = await corral.waiting("b")
        await corral.until_phase("b", Phase.LOADING)
        os.kill(corral.pid("b"), signal.SIGKILL)
        with await waiter:
            assert corral.model("a").phase is Phase.UNLOADED


@async_test
async def test_what_cannot_be_started_is_refused_until_the_operator_loads_it(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "extra_args": ("--bogus",)}) as corral:
        with pytest.raises(NotReady, match="could not be started"):
            await corral.lease("a")
        await corral.until_phase("a", Phase.FAILED)
        assert "--bogus" in (corral.model("a").error or "")
        assert corral.model("a").children[0].replica.state is State.FAILED


@async_test
async def test_a_crash_in_service_is_followed_by_a_start_and_the_model_stays_loaded(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        await corral.use("a")
        first = corral.pid("a")
        os.kill(first, signal.SIGKILL)
        await corral.until(lambda: not corral.model("a").ready)
        await corral.use("a")
        assert corral.pid("a") != first
        assert corral.model("a").phase is Phase.LOADED


@async_test
async def test_one_that_waits_for_its_next_start_after_a_crash_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.upstream.supervisor.BACKOFF_S", 600.0)
    async with running(tmp_path, A, B, memory_bytes=FOR_ONE) as corral:
        await corral.use("a")
        os.kill(corral.pid("a"), signal.SIGKILL)
        await corral.until(lambda: not corral.model("a").ready)
        await corral.use("b")
        # And so it does not wait for its next start any more.
        await corral.use("a")


@async_test
async def test_one_that_was_loaded_for_somebody_and_takes_no_requests_makes_room(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "extra_args": ("--load-s", "0.3")}, B, memory_bytes=FOR_ONE) as corral:
        waiter = await corral.waiting("a")
        await corral.until_phase("a", Phase.LOADING)
        waiter.cancel()
        corral.loader.drain(corral.model("a"))
        await corral.until_phase("a", Phase.LOADED)
        async with asyncio.timeout(UNUSED_S / 2):
            await corral.use("b")


# What operators ask for.


@async_test
async def test_unloading_waits_for_the_calls_and_ends_the_process(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        with await corral.lease("a"):
            pid = corral.pid("a")
            corral.loader.unload(corral.model("a"))
            waiter = await corral.waiting("a")
            assert alive(pid)
        # It is loaded on demand: whoever came meanwhile is served, by another process.
        with await waiter:
            assert not alive(pid)


@async_test
async def test_unloading_at_once_does_not_wait(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        with await corral.lease("a"):
            corral.loader.unload(corral.model("a"))
            corral.loader.unload(corral.model("a"), at_once=True)
            await corral.until_phase("a", Phase.UNLOADED)


@async_test
async def test_a_model_that_no_request_loads_is_not_there_until_the_operator_loads_it(tmp_path: Path) -> None:
    async with running(tmp_path, A, on_demand=False) as corral:
        await corral.use("a")
        corral.loader.unload(corral.model("a"))
        await corral.until_phase("a", Phase.UNLOADED)
        with pytest.raises(NotReady, match="model 'a' is not loaded"):
            await corral.lease("a")
        assert not corral.assembly.fleet.ready
        corral.loader.load(corral.model("a"))
        await corral.use("a")


@async_test
async def test_a_drained_model_stays_loaded_and_takes_calls_when_it_is_loaded_again(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        with await corral.lease("a"):
            pid = corral.pid("a")
            corral.loader.drain(corral.model("a"))
            with pytest.raises(NotReady, match="model 'a' takes no requests"):
                await corral.lease("a")
        corral.loader.load(corral.model("a"))
        await corral.use("a")
        assert corral.pid("a") == pid


@async_test
async def test_a_pin_holds_until_it_is_taken_away(tmp_path: Path) -> None:
    async with running(tmp_path, A, B, memory_bytes=FOR_ONE) as corral:
        await corral.use("a")
        corral.loader.pin(corral.model("a"), pinned=True)
        with pytest.raises(NotReady, match="always stay loaded"):
            await corral.lease("b")
        corral.loader.pin(corral.model("a"), pinned=False)
        await corral.use("b")


@async_test
async def test_a_restart_begins_the_new_process_before_the_old_one_goes(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        with await corral.lease("a") as lease:
            old = corral.pid("a")
            corral.loader.replace(corral.model("a"))
            await corral.use("a")
            await corral.loader.until(lambda: bool(corral.model("a").outgoing))
            new = corral.pid("a")
            assert (lease.replica.name, new != old, alive(old)) == ("a/0", True, True)
            assert (await corral.lease("a")).replica.name == "a/1"
        await corral.loader.until(lambda: not corral.model("a").outgoing)
        await corral.until(lambda: not alive(old))
        assert [replica.name for replica in corral.assembly.fleet.pool("a").replicas] == ["a/1"]


@async_test
async def test_a_drained_model_can_be_restarted_and_stays_drained(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        await corral.use("a")
        old = corral.pid("a")
        corral.loader.drain(corral.model("a"))
        corral.loader.replace(corral.model("a"))
        await corral.loader.until(lambda: corral.model("a").children[0].replica.name == "a/1")
        await corral.until(lambda: not alive(old))
        with pytest.raises(NotReady, match="takes no requests"):
            await corral.lease("a")
        corral.loader.load(corral.model("a"))
        await corral.use("a")


@async_test
async def test_a_model_that_left_at_once_can_be_back_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        for _ in range(3):
            with await corral.lease("a"):
                corral.loader.unload(corral.model("a"))
                waiter = await corral.waiting("a")
                corral.loader.unload(corral.model("a"), at_once=True)
                corral.loader.unload(corral.model("a"), at_once=True)
                with await waiter:
                    assert corral.model("a").phase is Phase.LOADED


@async_test
async def test_where_memory_does_not_allow_it_a_restart_begins_after_the_old_process(tmp_path: Path) -> None:
    async with running(tmp_path, A, memory_bytes=LARGE) as corral:
        with await corral.lease("a"):
            old = corral.pid("a")
            corral.loader.replace(corral.model("a"))
            waiter = await corral.waiting("a")
            assert alive(old)
        with await waiter as lease:
            assert (lease.replica.name, alive(old)) == ("a/1", False)


@async_test
async def test_a_process_that_was_replaced_takes_its_memory_until_it_is_gone(tmp_path: Path) -> None:
    stubborn = {**A, "extra_args": ("--ignore-term",)}
    async with running(tmp_path, stubborn, B, memory_bytes=2 * LARGE + 5 * MIB) as corral:
        await corral.use("a")
        old = corral.pid("a")
        corral.loader.replace(corral.model("a"))
        await corral.loader.until(lambda: corral.model("a").children[0].replica.name == "a/1")
        waiter = await corral.waiting("b")
        await corral.until_phase("b", Phase.LOADING)
        assert not alive(old)
        with await waiter:
            assert corral.model("a").phase is Phase.LOADED


@async_test
async def test_a_restart_that_fails_leaves_what_runs(tmp_path: Path) -> None:
    async with running(tmp_path, A) as corral:
        await corral.use("a")
        old = corral.pid("a")
        (tmp_path / "model.gguf").unlink()
        corral.loader.replace(corral.model("a"))
        await corral.loader.until(lambda: not corral.model("a").incoming)
        assert "there is no model file" in (corral.model("a").error or "")
        await corral.use("a")
        assert corral.pid("a") == old


@async_test
async def test_a_restart_while_it_loads_loads_anew(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "extra_args": SLOW}) as corral:
        waiter = await corral.waiting("a")
        await corral.until_phase("a", Phase.LOADING)
        first = corral.pid("a")
        corral.loader.replace(corral.model("a"))
        await corral.until(lambda: corral.model("a").phase is Phase.LOADING and corral.pid("a") != first)
        assert not alive(first)
        waiter.cancel()


@async_test
async def test_a_restart_in_the_moment_it_is_ready_waits_for_the_calls_it_has_already(tmp_path: Path) -> None:
    async with running(tmp_path, {**A, "extra_args": ("--load-s", "0.3")}) as corral:
        model = corral.model("a")
        waiter = await corral.waiting("a")
        replica = model.children[0].replica
        dispatch = replica.on_change

        def dispatch_and_restart() -> None:
            dispatch()
            if replica.busy:
                replica.on_change = dispatch
                # The loader has not noticed yet.
                assert model.phase is Phase.LOADING
                corral.loader.replace(model)

        await corral.until_phase("a", Phase.LOADING)
        pid = corral.pid("a")
        replica.on_change = dispatch_and_restart
        with await waiter as lease:
            assert lease.replica is replica
            await asyncio.sleep(0.2)
            assert alive(pid)
        await corral.until(lambda: not alive(pid))
        await corral.use("a")


@async_test
async def test_a_removed_model_is_gone_when_its_calls_are_over(tmp_path: Path) -> None:
    async with running(tmp_path, A, B) as corral:
        with await corral.lease("a"):
            pid = corral.pid("a")
            corral.loader.remove(corral.model("a"))
            await corral.use("b")
            assert alive(pid)
        await corral.loader.until(lambda: set(corral.loader.models) == {"b"})
        assert not alive(pid)


@async_test
async def test_at_the_end_nothing_is_left(tmp_path: Path) -> None:
    async with running(tmp_path, A, {**B, "extra_args": SLOW}) as corral:
        await corral.use("a")
        loading = await corral.waiting("b")
        await corral.until_phase("b", Phase.LOADING)
        await corral.until(lambda: corral.model("b").children[0].pid is not None)
        pids = [corral.pid("a"), corral.pid("b")]
        loading.cancel()
    assert not any(map(alive, pids))


@async_test
async def test_once_it_has_run_its_real_memory_counts_instead_of_the_estimate(tmp_path: Path) -> None:
    async with running(tmp_path, {"name": "a"}, {"name": "b"}, memory_bytes=FOR_ONE) as corral:
        for name in "ab":
            corral.model(name).children[0].footprint = Footprint(LARGE)
        await corral.use("a")
        await corral.use("b")
        assert corral.model("a").phase is Phase.UNLOADED
        assert 0 < corral.model("a").needed_bytes < LARGE
        await corral.use("a")
        assert corral.model("b").phase is Phase.LOADED


@async_test
async def test_what_the_operator_says_of_a_models_memory_counts_always(tmp_path: Path) -> None:
    async with running(tmp_path, A, {**B, "replicas": 2}) as corral:
        await corral.use("a")
        await corral.use("b")
        taken = [(corral.model(name).taken_bytes(), corral.model(name).needed_bytes) for name in "ab"]
        assert taken == [(LARGE, LARGE), (2 * LARGE, 2 * LARGE)]


@async_test
async def test_models_that_have_grown_beyond_the_budget_make_room_without_being_asked(tmp_path: Path) -> None:
    async with running(tmp_path, {"name": "a"}, {"name": "b"}, memory_bytes=4 * LARGE) as corral:
        await corral.use("a")
        await corral.use("b")
        corral.loader.settings = corral.loader.settings.model_copy(
            update={"memory_bytes": corral.model("a").taken_bytes() * 3 // 2}
        )
        corral.loader.wake()
        await corral.until_phase("a", Phase.UNLOADED)
        assert corral.model("b").phase is Phase.LOADED
