"""Loads models when they are wanted and unloads them when others need their memory, or nobody needs them."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from corral.config import FleetSettings
from corral.core.errors import NotReady
from corral.core.lifecycle import Departure, Phase, State, died_for_memory
from corral.core.placement import Hold, Never, Resident, Start, Stop, Wait, place, surplus
from corral.upstream.child import Child
from corral.upstream.local import LocalModel, Residency
from corral.upstream.moves import Moves
from corral.upstream.told import why_never

log = logging.getLogger("corral")

# Models grow while they serve: llama-server keeps prompts in memory. So often it is looked whether they still fit.
LOOK_S = 5.0

# A name that no model can have in the settings.
REMOVED = " (removed)"

RUNNING = (Phase.LOADING, Phase.LOADED, Phase.UNLOADING)


class Loader:
    """What is loaded of the models whose llama-servers are ours.

    One writer of their phases, with its ``Moves``: ``_step``, synchronous,
    which decides anew whenever something has changed. Whoever changes what it
    goes by calls ``wake``.
    """

    def __init__(self, settings: FleetSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.models: dict[str, LocalModel] = {}
        self._clock = clock
        self._moves = Moves(clock, self.wake)
        self._changed = asyncio.Event()
        self._stepped = asyncio.Event()

    def add(self, model: LocalModel) -> None:
        """Take care of this model; one that is preloaded begins to load."""
        self.models[model.name] = model
        model.pool.on_wanted = self.wake
        model.asked = model.residency.preload
        model.preloads = model.asked and model.residency.on_demand
        if not model.asked:
            for child in model.children:
                child.replica.become(State.STOPPED, "not loaded")
        self._moves.open(model)
        self.wake()

    def remove(self, model: LocalModel) -> None:
        """Unload it when its calls are over, and forget it then; nobody can ask for it any more."""
        model.residency = Residency(preload=False)
        model.removed = True
        # Another may get its name before its processes are gone.
        del self.models[model.name]
        while model.name in self.models or not model.name.endswith(REMOVED):
            model.name += REMOVED
        self.models[model.name] = model
        self.unload(model)

    def wake(self) -> None:
        """Something has changed: decide anew, soon."""
        self._changed.set()

    async def run(self) -> None:
        """Load and unload until cancelled; leaves no process behind."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            self._moves.tasks = tasks
            while True:
                self._changed.clear()
                due_s = self._step(self._clock())
                timer = loop.call_later(due_s, self.wake) if due_s is not None else None
                await self._changed.wait()
                if timer is not None:
                    timer.cancel()

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until ``claim`` holds; it is asked anew after each step."""
        while not claim():
            await self._stepped.wait()

    # What operators ask for.

    def load(self, model: LocalModel) -> None:
        """Load it, also when it could not be loaded before; let it take calls again."""
        model.drained, model.preloads, model.error = False, False, None
        model.asked = model.phase not in (Phase.LOADING, Phase.LOADED)
        if model.phase is Phase.FAILED:
            self._moves.enter(model, Phase.UNLOADED)
        self._moves.open(model)
        self.wake()

    def unload(self, model: LocalModel, *, at_once: bool = False) -> None:
        """Stop its processes when their calls are over, or at once; it is not loaded before someone asks for it."""
        model.asked = False
        if model.phase is Phase.FAILED:
            self._moves.enter(model, Phase.UNLOADED)
        elif model.phase in (Phase.LOADING, Phase.LOADED):
            changing = model.changing
            self._moves.leave(model, Departure.ASKED, gently=not at_once)
            if changing:
                self._moves.take_over(model, model.make(model.names))
        elif at_once:
            self._moves.hurry(model)
        self._moves.open(model)
        self.wake()

    def drain(self, model: LocalModel) -> None:
        """Let it finish the calls that it has, and take no more until it is loaded; its processes stay."""
        model.drained = True
        self._moves.open(model)
        self.wake()

    def pin(self, model: LocalModel, *, pinned: bool) -> None:
        """Keep it loaded whatever others need, or no longer."""
        model.pinned = pinned
        self.wake()

    def adjust(self, model: LocalModel, residency: Residency) -> None:
        """Other rules hold for it from now on; if it was not to be loaded by itself and is now, it is loaded."""
        # Not just because it is to be: an operator may have unloaded it.
        begins = residency.loads_itself and not model.residency.loads_itself
        if begins and model.phase in (Phase.UNLOADED, Phase.UNLOADING):
            model.asked = True
        model.residency = residency
        if model.phase is Phase.LOADED:
            # It may have been why it could not be replaced by what is not wanted any more.
            model.error = None
        elif model.misfit and not residency.on_demand:
            self._try_again(model)
        self._moves.open(model)
        self.wake()

    def replace(self, model: LocalModel) -> None:
        """Serve it by new processes: they start before the old ones go, where memory allows; else after."""
        made, phase = model.make(model.names), model.phase
        model.error = None
        self._moves.end_incoming(model)
        if phase is Phase.LOADED and self._fit(made, without=model.ending):
            if self._fit(made):
                self._moves.begin_incoming(model, made)
            else:
                model.outdated = True
            self.wake()
            return
        again = phase in (Phase.LOADING, Phase.LOADED) or (phase is Phase.FAILED and not model.residency.on_demand)
        model.asked = model.asked or again
        if phase in (Phase.LOADING, Phase.LOADED):
            self._moves.leave(model, Departure.REPLACED, gently=True)
        self._moves.take_over(model, made)
        if phase is Phase.FAILED:
            self._moves.enter(model, Phase.UNLOADED)
        self.wake()

    def keep(self, model: LocalModel) -> None:
        """Go on with its own processes: the settings that others were to serve it by are taken back."""
        self._moves.end_incoming(model)
        model.outdated = False
        self.wake()

    # The steps.

    def _step(self, now: float) -> float | None:
        """Do what has to be done now; the seconds until something has to be done by itself."""
        for model in list(self.models.values()):
            self._settle(model, now)
        self._yield_for_others(self._load_wanted(now))
        self._relieve(now)
        self._end_idle(now)
        self._watch_idle()
        self._stepped.set()
        self._stepped = asyncio.Event()
        return self._due_s(now)

    def _settle(self, model: LocalModel, now: float) -> None:
        """Take note of what has become of it."""
        if model.removed and model.phase in (Phase.UNLOADED, Phase.FAILED):
            del self.models[model.name]
            return
        if not model.wanted:
            model.wanted_since = None
        elif model.wanted_since is None:
            model.wanted_since = now
            self._moves.expect(model)
        if model.phase is Phase.LOADING:
            self._settle_loading(model)
        elif model.phase is Phase.LOADED:
            self._settle_loaded(model)

    def _settle_loading(self, model: LocalModel) -> None:
        starving = next((child.why for child in model.children if _starves(child)), None)
        if model.ready:
            self._moves.loaded(model)
        elif starving is not None and not model.starved:
            # What is idle makes room, whatever the sums say; then it is tried once more.
            model.starved = model.asked = True
            self._moves.leave(model, Departure.NO_MEMORY, starving)
        elif starving is not None:
            self._moves.fail(model, starving)
        elif all(child.failed for child in model.children):
            self._moves.fail(model, model.children[0].why)

    def _settle_loaded(self, model: LocalModel) -> None:
        if model.outdated and not model.ending:
            self.replace(model)
        elif any(child.replica.state is State.READY for child in model.incoming):
            self._moves.take_over(model, model.incoming)
        elif model.incoming and all(child.failed for child in model.incoming):
            self._moves.drop_incoming(model)
        elif not model.changing and all(child.failed for child in model.children):
            self._moves.fail(model, model.children[0].why)
        if model.phase is Phase.LOADED and model.outgoing and not any(child.replica.busy for child in model.outgoing):
            self._moves.end_outgoing(model)

    def _load_wanted(self, now: float) -> set[str]:
        """Begin to load what is wanted, the longest wanted first; the names of those that are to make room for one.

        One that has to wait is not overtaken: those behind it would take the memory that becomes free.
        """
        wanting = [(model.wanted_since, model.name) for model in self.models.values() if model.wanted_since is not None]
        for _, name in sorted(wanting):
            yielding = self._place(self.models[name], now)
            if yielding is not None:
                return yielding
        return set()

    def _place(self, model: LocalModel, now: float) -> set[str] | None:
        """Begin to load it, refuse it or let others pass it: None. Else it has to wait, for these among others."""
        there = self._residents(now)
        going = [each for each in there if each.hold in (None, Hold.LEAVING)]
        if model.starved and going and not model.modest:
            self._stop((each.name for each in going if each.hold is None), model)
            return set()
        decision = place(model.to_place(), there, self.settings.memory_bytes)
        match decision:
            case Start():
                self._moves.begin(model)
            case Never():
                self._refuse(model, why_never(model.to_place(), decision, self.settings.memory_bytes))
            case Stop(names) if model.modest:
                self._forgo(model, names)
            case Stop(names):
                self._stop(names, model)
                return set()
            case Wait(names) if not model.modest:
                busy = {each.name for each in there if each.hold is Hold.BUSY}
                waited_s = now - (model.wanted_since or now)
                return {name for name in names if self._may_yield(self.models[name], name in busy, waited_s, now)}
        return None

    def _residents(self, now: float) -> list[Resident]:
        return [model.resident(now) for model in self.models.values() if model.phase in RUNNING]

    def _may_yield(self, model: LocalModel, busy: bool, waited_s: float, now: float) -> bool:
        """Everyone has its turn: nobody is kept waiting for longer, and nobody is sent away sooner."""
        turn_s = self.settings.turn_s
        return model.yielding or (busy and waited_s >= turn_s and now - model.phase_since >= turn_s)

    def _yield_for_others(self, names: set[str]) -> None:
        for model in self.models.values():
            yielding = model.name in names
            if model.yielding is not yielding:
                model.yielding = yielding
                self._moves.drain(model, draining=yielding or model.drained or model.phase is Phase.UNLOADING)

    def _stop(self, names: Iterable[str], wanted: LocalModel) -> None:
        for name in names:
            self._moves.leave(self.models[name], Departure.EVICTED, f"for '{wanted.name}'")

    def _relieve(self, now: float) -> None:
        """Stop idle ones when all together have grown beyond the budget."""
        if self.settings.memory_bytes is not None:
            for name in surplus(self._residents(now), self.settings.memory_bytes):
                self._moves.leave(self.models[name], Departure.GROWN)

    def _end_idle(self, now: float) -> None:
        for model in self.models.values():
            due_s = self._idle_due_s(model, now)
            if due_s is not None and due_s <= 0:
                self._moves.leave(model, Departure.IDLE)

    def _idle_due_s(self, model: LocalModel, now: float) -> float | None:
        """When it will have been idle for long enough, unless it is used; None when that never ends it."""
        if model.phase is not Phase.LOADED or not model.residency.idle_ttl_s or model.stays:
            return None
        since = now if model.busy or model.pool.waiting or model.changing or model.outgoing else model.used_at
        return since + model.residency.idle_ttl_s - now

    def _watch_idle(self) -> None:
        """Be told of the end of calls only while someone waits for it: it happens with every request."""
        waited_for = any(model.wanted or model.outgoing for model in self.models.values())
        for model in self.models.values():
            if model.phase is Phase.LOADED:
                for child in model.processes:
                    child.replica.on_idle = self.wake if waited_for else None

    def _due_s(self, now: float) -> float | None:
        dues = [due_s for model in self.models.values() if (due_s := self._idle_due_s(model, now)) is not None]
        if any(model.wanted for model in self.models.values()):
            # Turns end, and what was loaded for someone who does not come becomes idle.
            dues.append(self.settings.turn_s / 4)
        if self.settings.memory_bytes is not None:
            dues.append(LOOK_S)
        return max(0.0, min(dues)) if dues else None

    def _forgo(self, model: LocalModel, names: Iterable[str]) -> None:
        why = f"it would take the place of {', '.join(map(repr, names))}; requests load it"
        log.warning("a model is not preloaded", extra={"fields": {"model": model.name, "why": why}})
        model.asked, model.starved, model.wanted_since = False, False, None
        self._moves.open(model)

    def _refuse(self, model: LocalModel, why: str) -> None:
        log.warning("a model does not fit", extra={"fields": {"model": model.name, "why": why}})
        model.asked, model.starved, model.wanted_since, model.error = False, False, None, why
        model.pool.refuse(NotReady(why))
        if model.residency.on_demand:
            self._moves.open(model)
        else:
            # Nobody will ask again.
            self._moves.fail(model, why)
            model.misfit = True

    def _try_again(self, model: LocalModel) -> None:
        """There may be room now for one that was given up for want of it."""
        model.asked = True
        if model.phase is Phase.FAILED:
            self._moves.enter(model, Phase.UNLOADED)

    def _fit(self, made: Iterable[Child], without: Iterable[Child] = ()) -> bool:
        """There is memory for these beside all that runs, or all but some."""
        budget = self.settings.memory_bytes
        taken = sum(each.taken_bytes() for each in self.models.values()) - sum(each.taken_bytes() for each in without)
        return budget is None or taken + sum(child.needed_bytes for child in made) <= budget


def _starves(child: Child) -> bool:
    return child.replica.state in (State.BACKOFF, State.FAILED) and died_for_memory(child.why)
