"""Keeps llama-servers running at fixed addresses in a process of its own, and ends that process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from corral.core.lifecycle import State, Transition
from corral.upstream import pidfile
from corral.upstream.address import Address
from corral.upstream.argv import engine_command, llama_argv, llama_environment
from corral.upstream.logfile import log_path
from corral.upstream.pidfile import Keeper, Kept
from corral.upstream.probe import Prober
from corral.upstream.process import become, spawn_detached
from corral.upstream.spec import EngineSpec
from corral.upstream.supervisor import Supervisor
from corral.upstream.wire import Client

KEEPER_LOG = "keeper.log"

# What the keeper needs beside the grace of its children, and how often it is looked for.
STOP_MARGIN_S = 5.0
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class News:
    """What the keeper tells of one llama-server while it starts."""

    name: str
    state: State
    why: str
    pid: int | None


def run(spec: EngineSpec) -> None:
    """Become the llama-server; raises EngineError or OSError when there is none to become."""
    command = engine_command(spec.server_bin)
    become([*command, *llama_argv(spec, spec.port, command)], llama_environment(os.environ, spec.api_key))


def start(command: Sequence[str], run_dir: Path) -> subprocess.Popen[bytes]:
    """Start a keeper, which is ``command`` and calls ``keep``; it outlives this process."""
    return spawn_detached(command, run_dir / KEEPER_LOG)


def news(keeper: subprocess.Popen[bytes]) -> Iterator[News]:
    """What a keeper tells, as it happens; ends when the keeper has ended."""
    for line in keeper.stdout or ():
        told = json.loads(line)
        yield News(told["name"], State(told["state"]), told["why"], told["pid"])


async def keep(specs: Sequence[EngineSpec], run_dir: Path) -> None:
    """Keep the llama-servers running until TERM or INT, or until none of them can be started any more.

    Raises EngineError when another process does so in this directory.
    """
    grace_s = max(spec.stop_grace_s for spec in specs) + STOP_MARGIN_S
    labelled = list(zip(_labels(specs), specs, strict=True))
    pidfile.claim(run_dir, grace_s, tuple(_kept(label, spec) for label, spec in labelled))
    client = Client()
    try:
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(_supervisor(label, spec, client).run()) for label, spec in labelled]
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, _cancel, runs)
    finally:
        pidfile.release(run_dir)
        await client.close()


def stop(run_dir: Path) -> Keeper | None:
    """End the keeper and with it its llama-servers; the keeper that was, or None when there was none."""
    keeper = pidfile.find(run_dir)
    if keeper is not None:
        os.kill(keeper.pid, signal.SIGTERM)
        deadline = time.monotonic() + keeper.grace_s
        while keeper.alive and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if keeper.alive:
            # Its children are on its leash and go with it.
            os.killpg(keeper.pid, signal.SIGKILL)
    pidfile.release(run_dir)
    return keeper


def _labels(specs: Sequence[EngineSpec]) -> list[str]:
    """A name for each: that of its model, with the port where a model has several."""
    names = [spec.name for spec in specs]
    return [f"{spec.name}:{spec.port}" if names.count(spec.name) > 1 else spec.name for spec in specs]


def _kept(label: str, spec: EngineSpec) -> Kept:
    log = log_path(spec.log_dir, label) if spec.log_dir else ""
    return Kept(label, f"http://{Address(spec.host, spec.port)}", str(log))


def _supervisor(label: str, spec: EngineSpec, client: Client) -> Supervisor:
    supervisor = Supervisor(spec, Prober(client).facts, lambda change: _tell(change, supervisor.pid), replica=label)
    return supervisor


def _cancel(runs: Sequence[asyncio.Task[None]]) -> None:
    for each in runs:
        each.cancel()


def _tell(change: Transition, pid: int | None) -> None:
    told = {"name": change.replica, "state": change.new.value, "why": change.why, "pid": pid}
    # Who started the keeper listens only until everything is ready.
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(told).encode() + b"\n")
