"""Moves a model from one phase to the next: begins its processes, and ends them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence

from corral.core.lifecycle import Departure, Phase, State
from corral.upstream.child import Child
from corral.upstream.local import LocalModel
from corral.upstream.told import told_bytes

log = logging.getLogger("corral")

# How long a load takes, as long as none of the model has been seen: half a gigabyte a second, and a second to start.
LOAD_BYTES_PER_S = 500e6
LOAD_START_S = 1.0


class Moves:
    """What can be done to a model, each in one synchronous step; what takes time is left to a task.

    Writes the phases and children of the models, for the loader, which alone
    calls it and owns the tasks.
    """

    def __init__(self, clock: Callable[[], float], on_change: Callable[[], None]) -> None:
        self.tasks: asyncio.TaskGroup | None = None
        self._clock = clock
        self._on_change = on_change

    def begin(self, model: LocalModel) -> None:
        """Start its processes."""
        model.requested = model.pool.waiting > 0
        model.asked, model.wanted_since, model.error = False, None, None
        self.enter(model, Phase.LOADING)
        self.expect(model)
        log.info("loading model", extra={"fields": {"model": model.name, "memory": told_bytes(model.needed_bytes)}})
        self._begin_all(model.children)

    def expect(self, model: LocalModel) -> None:
        """Let the pool tell those who cannot wait when the model is likely to be there."""
        expected_s = model.load_s or LOAD_START_S + model.needed_bytes / LOAD_BYTES_PER_S
        model.pool.ready_at = asyncio.get_running_loop().time() + expected_s

    def loaded(self, model: LocalModel) -> None:
        """One of its processes has become ready."""
        model.load_s = self._clock() - model.phase_since
        model.starved = model.preloads = False
        model.loads += 1
        self.enter(model, Phase.LOADED)
        log.info("model loaded", extra={"fields": {"model": model.name, "seconds": round(model.load_s, 2)}})

    def leave(self, model: LocalModel, why: Departure, detail: str = "", *, gently: bool = False) -> None:
        """Take no more calls from this moment on, and end its processes; gently: when their calls are over."""
        self.enter(model, Phase.UNLOADING)
        model.departures[why] = model.departures.get(why, 0) + 1
        log.info("unloading model", extra={"fields": {"model": model.name, "why": why.value, "detail": detail}})
        for child in model.processes:
            child.replica.drain()
        model.at_once = not gently
        into = Phase.FAILED if why is Departure.FAILED else Phase.UNLOADED
        self._start(self._end(model, model.processes, into))

    def hurry(self, model: LocalModel) -> None:
        """It leaves already, and is not to wait for the end of its calls any longer."""
        model.at_once = True
        for child in model.processes:
            if child.replica.on_idle is not None:
                child.replica.on_idle()

    def fail(self, model: LocalModel, why: str) -> None:
        """Give it up, until someone acts."""
        model.error, model.asked, model.starved = why, False, False
        self.leave(model, Departure.FAILED)

    def enter(self, model: LocalModel, phase: Phase) -> None:
        """Write its phase, and what follows from it."""
        model.phase, model.phase_since = phase, self._clock()
        model.yielding = model.outdated = False
        model.pool.ready_at = None
        if phase is Phase.UNLOADED:
            model.misfit = False
            for child in model.children:
                child.replica.become(State.STOPPED, "not loaded")
        self.open(model)

    def open(self, model: LocalModel) -> None:
        """Say whether it is worth waiting for the model, and let its processes take calls, or not."""
        pool, gone = model.pool, model.phase in (Phase.UNLOADED, Phase.UNLOADING)
        pool.sleeping = gone and model.residency.on_demand and not model.drained
        if model.removed:
            pool.absent = f"model '{pool.name}' does not exist any more"
        elif model.drained:
            pool.absent = f"model '{pool.name}' takes no requests"
        else:
            pool.absent = f"model '{pool.name}' is not loaded" if gone and not (pool.sleeping or model.asked) else None
        if model.phase is Phase.LOADED:
            self.drain(model, draining=model.drained or model.yielding)
        for replica in model.remotes:
            replica.drain(draining=model.drained or model.removed)
        pool.dispatch()

    def drain(self, model: LocalModel, *, draining: bool) -> None:
        """Let its processes take no more calls, or take them again; those that were replaced never do."""
        for child in (*model.children, *model.incoming):
            child.replica.drain(draining=draining)

    def begin_incoming(self, model: LocalModel, made: Sequence[Child]) -> None:
        """Start processes that are to replace its own, which go on serving meanwhile."""
        model.incoming, model.outdated = made, False
        model.pool.change(model.replicas)
        self._begin_all(made)
        self.drain(model, draining=model.drained or model.yielding)

    def end_incoming(self, model: LocalModel) -> None:
        """Those that were to replace its own, if there are any, have been overtaken by another change."""
        overtaken, model.incoming = model.incoming, ()
        for child in overtaken:
            child.replica.drain()
        # One that has just become ready may have calls.
        busy = [child for child in overtaken if child.replica.busy]
        model.outgoing.extend(busy)
        model.pool.change(model.replicas)
        if idle := [child for child in overtaken if child not in busy]:
            self._end_soon(model, idle)

    def drop_incoming(self, model: LocalModel) -> None:
        """The new processes could not be started; the old ones stay."""
        dropped, model.incoming = model.incoming, ()
        model.error = dropped[0].why
        model.pool.change(model.replicas)
        log.warning("a model could not be replaced", extra={"fields": {"model": model.name, "why": model.error}})
        self._end_soon(model, dropped)

    def take_over(self, model: LocalModel, made: Sequence[Child]) -> None:
        """Serve it by these processes; the old ones finish their calls."""
        if model.phase not in (Phase.UNLOADED, Phase.FAILED):
            model.outgoing.extend(child for child in (*model.children, *model.incoming) if child not in made)
        for child in model.children:
            child.replica.drain()
        model.children, model.incoming = made, ()
        for child in made:
            if child.replica.state is State.UNKNOWN:
                child.replica.become(State.STOPPED, "not loaded")
        model.pool.change(model.replicas)
        self.open(model)

    def end_outgoing(self, model: LocalModel) -> None:
        """End the processes that were replaced."""
        ended, model.outgoing = model.outgoing, []
        model.pool.change(model.replicas)
        self._end_soon(model, ended)

    def _end_soon(self, model: LocalModel, ended: Sequence[Child]) -> None:
        model.ending.extend(ended)
        self._start(self._end_some(model, ended))

    async def _end_some(self, model: LocalModel, ended: Sequence[Child]) -> None:
        await _end_all(ended)
        model.ending = [child for child in model.ending if child not in ended]
        self._on_change()

    async def _end(self, model: LocalModel, leaving: Sequence[Child], into: Phase) -> None:
        # There is one such task for each time that it leaves: who is in a hurry nudges this one.
        await _until_idle(model, leaving)
        await _end_all(leaving)
        if into is Phase.FAILED and not model.asked:
            for child in leaving:
                child.replica.become(State.FAILED, model.error or "")
        if model.phase is Phase.UNLOADING:
            model.outgoing, model.incoming, model.ending = [], (), []
            model.pool.change(model.replicas)
            self.enter(model, Phase.UNLOADED if model.asked else into)
        self._on_change()

    def _begin_all(self, children: Iterable[Child]) -> None:
        for child in children:
            child.begin(self._group())

    def _start(self, work: Coroutine[object, object, None]) -> None:
        self._group().create_task(work, name="corral-unload")

    def _group(self) -> asyncio.TaskGroup:
        if self.tasks is None:
            raise RuntimeError("the loader does not run")
        return self.tasks


async def _until_idle(model: LocalModel, leaving: Sequence[Child]) -> None:
    """Return when none of them has a call any more, or the model is to leave at once; they take no new ones."""
    changed = asyncio.Event()
    for child in leaving:
        child.replica.on_idle = changed.set
    while not model.at_once and any(child.replica.busy for child in leaving):
        changed.clear()
        await changed.wait()


async def _end_all(children: Iterable[Child]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for child in children:
            tasks.create_task(child.end())
