"""One llama-server and what becomes of it, on a fake one with the real probe."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from corral.core.lifecycle import State, Transition
from corral.upstream.address import Address
from corral.upstream.probe import Prober
from corral.upstream.spec import EngineSpec
from corral.upstream.supervisor import START_FAILURES, Progress, Supervisor
from corral.upstream.wire import Client
from support.children import alive, eventually, fake_engine
from support.loops import on_both_loops
from support.run import async_test

LONG_S = 600.0


class Watched:
    """A supervisor, the task that runs it, and what it told; also what held at each transition."""

    def __init__(self, spec: EngineSpec, client: Client) -> None:
        self.told: list[Transition] = []
        self.keys: list[str | None] = []
        self.addresses: list[Address | None] = []
        self.supervisor = Supervisor(spec, Prober(client).facts, self._tell, replica="m/0")
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def states(self) -> list[State]:
        return [transition.new for transition in self.told]

    async def until(self, state: State, times: int = 1) -> None:
        await eventually(lambda: self.states.count(state) >= times, f"{state} {times} times, but {self.states}:")

    def _tell(self, transition: Transition) -> None:
        self.told.append(transition)
        self.addresses.append(self.supervisor.address)
        self.keys.append(self.supervisor.api_key)


@asynccontextmanager
async def watched(spec: EngineSpec) -> AsyncIterator[Watched]:
    client = Client()
    seen = Watched(spec, client)
    try:
        yield seen
    finally:
        pid = seen.supervisor.pid
        await seen.supervisor.stop()
        await asyncio.wait({seen.task})
        await client.close()
        assert pid is None or not alive(pid)


def spec(directory: Path, *flags: str) -> EngineSpec:
    model = directory / "model.gguf"
    model.write_bytes(b"GGUF")
    return EngineSpec(
        "m", model, server_bin=fake_engine(directory, *flags), start_timeout_s=LONG_S, stop_grace_s=LONG_S
    )


@on_both_loops
async def test_it_is_loading_until_it_answers_and_then_ready(tmp_path: Path) -> None:
    async with watched(spec(tmp_path, "--load-s", "0.3")) as seen:
        await seen.until(State.READY)

        assert seen.states == [State.LOADING, State.READY]
        assert [(each.replica, each.model) for each in seen.told] == [("m/0", "m")] * 2
        assert [each.old for each in seen.told] == [State.UNKNOWN, State.LOADING]
        assert seen.addresses[0] == seen.addresses[1] == seen.supervisor.address
        assert seen.supervisor.state is State.READY


@on_both_loops
async def test_stop_ends_the_child_and_the_task(tmp_path: Path) -> None:
    async with watched(spec(tmp_path)) as seen:
        await seen.until(State.READY)
        pid = seen.supervisor.pid
        assert pid is not None

        await seen.supervisor.stop()

        assert not alive(pid)
        assert seen.supervisor.pid is None
        assert seen.states[-1] is State.STOPPED
        assert (seen.addresses[-1], seen.keys[-1]) == (None, None)
        await seen.task


@on_both_loops
async def test_cancelling_it_leaves_no_child(tmp_path: Path) -> None:
    async with watched(spec(tmp_path)) as seen:
        await seen.until(State.READY)
        pid = seen.supervisor.pid
        assert pid is not None

        seen.task.cancel()
        await asyncio.wait({seen.task})

        assert seen.task.cancelled()
        assert not alive(pid)
        assert seen.states[-1] is State.STOPPED


@async_test
async def test_a_crash_in_service_is_followed_by_a_start_on_another_port_with_another_key(tmp_path: Path) -> None:
    async with watched(spec(tmp_path)) as seen:
        await seen.until(State.READY)
        first = seen.supervisor.pid
        assert first is not None

        os.kill(first, signal.SIGKILL)
        await seen.until(State.READY, times=2)

        assert seen.states[2:] == [State.BACKOFF, State.LOADING, State.READY]
        assert seen.supervisor.pid != first
        assert seen.addresses[2] is None
        assert seen.keys[1] not in (None, "", seen.keys[4])
        assert seen.addresses[1] != seen.addresses[4]
        assert "was killed by SIGKILL" in seen.told[2].why


@async_test
async def test_starts_that_fail_are_given_up_with_the_reason(tmp_path: Path) -> None:
    async with watched(spec(tmp_path, "--fail-load")) as seen:
        await seen.task

        assert seen.states == [State.LOADING, State.BACKOFF] * (START_FAILURES - 1) + [State.LOADING, State.FAILED]
        why = seen.supervisor.why
        assert "exited with status 1 before it was ready" in why
        assert "error: failed to load model" in why
        assert seen.supervisor.log_tail()[-1] == "error: failed to load model"


@async_test
async def test_wrong_arguments_are_not_tried_again(tmp_path: Path) -> None:
    async with watched(replace(spec(tmp_path), extra_args=("--bogus",))) as seen:
        await seen.task

        assert seen.states == [State.LOADING, State.FAILED]
        assert "--bogus" in seen.supervisor.why


@async_test
async def test_without_its_model_file_nothing_is_started(tmp_path: Path) -> None:
    async with watched(replace(spec(tmp_path), file=tmp_path / "gone.gguf")) as seen:
        await seen.task

        assert seen.states == [State.FAILED]
        assert "gone.gguf" in seen.supervisor.why


@async_test
async def test_without_its_llama_server_nothing_is_started(tmp_path: Path) -> None:
    async with watched(replace(spec(tmp_path), server_bin=tmp_path / "gone")) as seen:
        await seen.task

        assert seen.states == [State.FAILED]
        assert "LLAMA_SERVER_BIN" in seen.supervisor.why


@async_test
async def test_a_start_that_takes_too_long_is_a_failed_one(tmp_path: Path) -> None:
    # Two seconds are enough for the fake to be up and loading, whatever else the machine does.
    async with watched(replace(spec(tmp_path, "--load-s", "600"), start_timeout_s=2.0)) as seen:
        await seen.until(State.BACKOFF)

        assert "was not ready within 2 s" in seen.told[-1].why


@async_test
async def test_a_start_that_shows_no_sign_of_life_is_a_failed_one(tmp_path: Path) -> None:
    async with watched(replace(spec(tmp_path, "--load-s", "600"), start_stall_s=1.0)) as seen:
        await seen.until(State.BACKOFF)

        assert "showed no sign of life for 1 s" in seen.told[-1].why


def test_any_sign_of_life_puts_the_limit_off() -> None:
    progress = Progress(10.0, 0.0)
    assert not progress.stalled((1, None), 1.0)
    assert not progress.stalled((1, None), 11.0)
    assert not progress.stalled((2, None), 12.0)
    assert not progress.stalled((2, 5), 20.0)
    assert not progress.stalled((2, 5), 30.0)
    assert progress.stalled((2, 5), 30.1)


@async_test
async def test_the_memory_of_the_child_is_known_while_it_runs(tmp_path: Path) -> None:
    async with watched(spec(tmp_path)) as seen:
        await seen.until(State.READY)
        assert (seen.supervisor.resident_bytes or 0) > 2**20

        await seen.supervisor.stop()

        assert seen.supervisor.resident_bytes is None


@async_test
async def test_stop_does_not_wait_for_a_model_that_loads(tmp_path: Path) -> None:
    async with watched(spec(tmp_path, "--load-s", "600")) as seen:
        await seen.until(State.LOADING)

        await seen.supervisor.stop()

        assert seen.states == [State.LOADING, State.STOPPED]


@async_test
async def test_stop_does_not_wait_for_the_back_off(tmp_path: Path) -> None:
    async with watched(spec(tmp_path, "--fail-load")) as seen:
        await seen.until(State.BACKOFF)

        await seen.supervisor.stop()

        assert seen.states == [State.LOADING, State.BACKOFF, State.STOPPED]


@async_test
async def test_stop_before_the_start_means_no_start(tmp_path: Path) -> None:
    client = Client()
    supervisor = Supervisor(spec(tmp_path), Prober(client).facts)

    await supervisor.stop()
    await supervisor.run()

    assert (supervisor.state, supervisor.log_tail()) == (State.STOPPED, [])


@async_test
async def test_a_child_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with watched(replace(spec(tmp_path, "--ignore-term"), stop_grace_s=0.1)) as seen:
        await seen.until(State.READY)
        pid = seen.supervisor.pid
        assert pid is not None

        await seen.supervisor.stop()

        assert not alive(pid)


@async_test
async def test_at_a_fixed_port_another_server_is_not_taken_for_the_child(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        async with watched(replace(spec(tmp_path), port=port)) as seen:
            await seen.task

            assert seen.states == [State.BACKOFF, State.FAILED]
            assert f"127.0.0.1:{port}: Address already in use" in seen.supervisor.why


@async_test
async def test_at_a_fixed_port_the_key_is_the_given_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with watched(replace(spec(tmp_path), port=port, api_key="given")) as seen:
        await seen.until(State.READY)

        assert (seen.supervisor.address, seen.supervisor.api_key) == (Address("127.0.0.1", port), "given")


@async_test
async def test_output_goes_to_a_file_named_after_the_replica(tmp_path: Path) -> None:
    async with watched(replace(spec(tmp_path, "--fail-load"), log_dir=tmp_path / "logs")) as seen:
        await seen.task

    text = (tmp_path / "logs" / "m%2F0.log").read_text()
    assert text.count("error: failed to load model") == START_FAILURES


@async_test
async def test_a_listener_that_fails_leaves_no_child(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail(_: Transition) -> None:
        if supervisor.pid is not None:
            pids.append(supervisor.pid)
            raise ArithmeticError

    client = Client()
    supervisor = Supervisor(spec(tmp_path), Prober(client).facts, fail)
    task = asyncio.create_task(supervisor.run())

    await asyncio.wait({task})

    assert isinstance(task.exception(), ArithmeticError)
    assert not alive(pids[0])
    await client.close()
