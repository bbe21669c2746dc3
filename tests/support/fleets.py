"""A whole Corral within the test, whose llama-servers are fakes that come and go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from corral.assembly import Assembly
from corral.config import Config, FleetSettings, LlamaSettings, ModelSettings, QueueSettings
from corral.core.lifecycle import Phase
from corral.upstream.lease import Lease
from corral.upstream.local import UNUSED_S, LocalModel
from support.children import fake_engine
from support.pools import demand_of

# Longer than a model stays for somebody who does not come.
PATIENCE_S = 2 * UNUSED_S
MIB = 2**20
# More than a fake takes, which is some 30 MiB.
LARGE = 200 * MIB


class Running:
    """The parts of a running Corral that tests ask things of."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.loader = assembly.loader
        self.seen: list[tuple[str, str]] = []

    def model(self, name: str) -> LocalModel:
        return self.loader.models[name]

    def pid(self, name: str) -> int:
        """The process of a model that has one."""
        (pid,) = (child.pid for child in self.model(name).children)
        assert pid is not None
        return pid

    async def lease(self, name: str) -> Lease:
        async with asyncio.timeout(PATIENCE_S):
            return await self.assembly.fleet.pool(name).lease(demand_of())

    async def use(self, name: str) -> None:
        """Have a call served."""
        with await self.lease(name):
            pass

    async def waiting(self, name: str) -> "asyncio.Task[Lease]":
        """A call that waits."""
        task = asyncio.create_task(self.lease(name))
        await self.until(lambda: self.assembly.fleet.pool(name).waiting > 0)
        return task

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until a claim holds; asked anew at short intervals, for pools tell nobody of those who wait."""
        async with asyncio.timeout(PATIENCE_S):
            while not claim():  # noqa: ASYNC110  (not all of it sets an event)
                await asyncio.sleep(0.005)

    async def until_phase(self, name: str, phase: Phase) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.loader.until(lambda: self.model(name).phase is phase)


@asynccontextmanager
async def running(directory: Path, *models: dict[str, Any], **settings: Any) -> AsyncIterator[Running]:
    """Serve these models, by fakes; settings are those of the fleet, and ``unready_patience_s`` of the queue.

    Each model loads on demand; ``extra_args`` are flags of its fake.
    """
    patience_s = settings.pop("unready_patience_s", PATIENCE_S)
    assembly = Assembly(config_of(directory, *models, unready_patience_s=patience_s, **settings))
    async with assembly.running():
        yield Running(assembly)


def config_of(directory: Path, *models: dict[str, Any], unready_patience_s: float = 20.0, **settings: Any) -> Config:
    file = directory / "model.gguf"
    file.write_bytes(b"GGUF")
    engine = directory / "fake-llama-server"
    return Config(
        models=tuple(ModelSettings(**{"file": file, **model}) for model in models),
        fleet=FleetSettings(**{"on_demand": True, **settings}),
        llama=LlamaSettings(
            server_bin=engine if engine.exists() else fake_engine(directory), log_dir=None, parallel=2, stop_grace_s=5.0
        ),
        queue=QueueSettings(unready_patience_s=unready_patience_s),
    )
