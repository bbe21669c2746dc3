"""What the loader promises, whatever happens in whatever order: with real processes, and a seed for what happens."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from corral.core.errors import NotReady
from corral.core.footprint import Footprint
from corral.core.lifecycle import Departure, Phase
from corral.upstream.child import Child
from support.children import alive
from support.fleets import MIB, Running, running
from support.run import async_test

NAMES = ("a", "b", "c", "d")
SECONDS = 6.0
CLIENTS = 6
# Two fit, and never three.
ROOM = 2.6
# What anyone may be told who waits in vain: that an operator drains, or that the murderer has come three times.
EXPECTED = ("takes no requests", "could not be started")


class Storm:
    """Clients, an operator and a murderer. Written by the tasks that play them."""

    def __init__(self, corral: Running, seed: int, room: int) -> None:
        self.corral = corral
        self.room = room
        self.chance = random.Random(seed)
        self.until = asyncio.get_running_loop().time() + SECONDS
        self.served = 0
        self.refusals: set[str] = set()
        self.pids: set[int] = set()
        # Processes that the murderer has killed: who was served by them is not the loader's fault.
        self.killed: set[int] = set()

    @property
    def goes_on(self) -> bool:
        return asyncio.get_running_loop().time() < self.until

    async def client(self) -> None:
        while self.goes_on:
            name = self.chance.choice(NAMES)
            try:
                lease = await self.corral.lease(name)
            except NotReady as error:
                self.refusals.add(error.message)
                await asyncio.sleep(0.05)
                continue
            with lease:
                model = self.corral.model(name)
                pid = next(child.pid for child in model.processes if child.replica is lease.replica)
                await asyncio.sleep(self.chance.uniform(0.0, 0.1))
                assert pid is None or alive(pid) or pid in self.killed, f"{name} was stopped while it was busy"
                self.served += 1

    async def operator(self) -> None:
        loader = self.corral.loader
        while self.goes_on:
            await asyncio.sleep(self.chance.uniform(0.1, 0.4))
            model = self.corral.model(self.chance.choice(NAMES))
            match self.chance.choice(("load", "unload", "drain", "pin", "unpin", "restart")):
                case "load":
                    loader.load(model)
                case "unload":
                    loader.unload(model)
                case "drain":
                    loader.drain(model)
                case "pin" if not any(other.pinned for other in loader.models.values()):
                    loader.pin(model, pinned=True)
                case "restart":
                    loader.replace(model)
                case _:
                    loader.pin(model, pinned=False)

    async def murderer(self) -> None:
        while self.goes_on:
            await asyncio.sleep(self.chance.uniform(0.3, 1.0))
            pids = [child.pid for model in self.corral.loader.models.values() for child in model.processes]
            living = [pid for pid in pids if pid is not None]
            if living:
                self.killed.add(victim := self.chance.choice(living))
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)

    async def witness(self) -> None:
        """Memory is never taken beyond the budget, and what the loader believes is never less than what is taken."""
        models = self.corral.loader.models.values()
        while self.goes_on:
            children = [child for model in models for child in model.processes]
            self.pids |= {child.pid for child in children if child.pid is not None}
            taken = sum(child.resident_bytes or 0 for child in children)
            assert taken <= self.room, f"{taken / MIB:.0f} MiB of {self.room / MIB:.0f} are taken"
            await asyncio.sleep(0.01)


def sized(make: Callable[[Container[str]], Sequence[Child]], size: int) -> Callable[[Container[str]], Sequence[Child]]:
    """Makes children that are expected to take so much memory."""

    def make_sized(taken: Container[str]) -> Sequence[Child]:
        made = make(taken)
        for child in made:
            child.footprint = Footprint(size)
        return made

    return make_sized


async def limit_memory(corral: Running) -> int:
    """Leave room for two models, by what one of them is seen to take; the budget in bytes."""
    await corral.use("a")
    one = corral.model("a").taken_bytes()
    for model in corral.loader.models.values():
        model.make = sized(model.make, one)
        for child in model.children:
            child.footprint = Footprint(one)
    room = int(ROOM * one)
    corral.loader.settings = corral.loader.settings.model_copy(update={"memory_bytes": room})
    return room


@pytest.mark.parametrize("seed", [1, 2])
@async_test
async def test_whatever_happens_nobody_is_stopped_while_busy_nor_forgotten_and_memory_holds(
    tmp_path: Path, seed: int
) -> None:
    async with running(tmp_path, *({"name": name} for name in NAMES), turn_s=0.3) as corral:
        room = await limit_memory(corral)
        storm = Storm(corral, seed, room)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(storm.client())
            for player in (storm.operator, storm.murderer, storm.witness):
                tasks.create_task(player())
        assert storm.served > CLIENTS
        assert [told for told in storm.refusals if not any(each in told for each in EXPECTED)] == []
        assert sum(model.departures.get(Departure.EVICTED, 0) for model in corral.loader.models.values()) > 0
        # When it is over, everything can be had again, and nothing is held by anyone.
        for name in NAMES:
            model = corral.model(name)
            corral.loader.pin(model, pinned=False)
        for name in NAMES:
            model = corral.model(name)
            corral.loader.load(model)
            await corral.until(lambda model=model: model.phase is Phase.LOADED and not model.outgoing)  # type: ignore[misc]  # a lambda's default has no type
            await corral.use(name)
            assert not model.busy
            assert corral.assembly.fleet.pool(name).waiting == 0
    assert not [pid for pid in storm.pids if alive(pid)]
