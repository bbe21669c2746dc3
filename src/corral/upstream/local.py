"""A model whose llama-servers are ours: what it takes, how it stands, and what keeps it where it is."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from corral.core.lifecycle import Departure, Phase, State
from corral.core.placement import Hold, Resident, Wanted
from corral.upstream.child import Child
from corral.upstream.pool import Pool
from corral.upstream.replica import Replica

# A model that was loaded for someone who has not come back yet stays for so long: clients that were told to
# come later do so within their Retry-After, which is seldom more.
UNUSED_S = 20.0


@dataclass(frozen=True, slots=True)
class Residency:
    """When a model is loaded, and when it has to go."""

    on_demand: bool = False
    preload: bool = True
    idle_ttl_s: float = 0.0
    group: str | None = None
    exclusive: bool = False

    @property
    def loads_itself(self) -> bool:
        """It is loaded at the start, and no request would load it."""
        return self.preload and not self.on_demand


@dataclass(slots=True, eq=False)
class LocalModel:
    """One model. One writer: the loader; the pool and the children keep their own state.

    Times are on the loader's clock.
    """

    name: str
    pool: Pool
    # Makes children anew, for a restart; with other names than these.
    make: Callable[[Container[str]], Sequence[Child]]
    children: Sequence[Child]
    residency: Residency
    pinned: bool = False
    phase: Phase = Phase.UNLOADED
    # Loading was asked for by the operator or at the start, and has not begun yet.
    asked: bool = False
    # That was at the start, though requests would load it.
    preloads: bool = False
    # The operator wants no calls to be taken.
    drained: bool = False
    # It takes no more calls until it has made room for another.
    yielding: bool = False
    # Since when it waits to be loaded.
    wanted_since: float | None = None
    phase_since: float = 0.0
    load_s: float | None = None
    # A load died for memory: the next one begins when all that is idle has gone, and is the last try.
    starved: bool = False
    # Someone waited for it when it began to load.
    requested: bool = False
    # It was given up because it did not fit.
    misfit: bool = False
    # It is not in the settings any more.
    removed: bool = False
    # It leaves without waiting for the end of its calls.
    at_once: bool = False
    loads: int = 0
    departures: dict[Departure, int] = field(default_factory=dict)
    # Why it is not loaded, for operators.
    error: str | None = None
    # Llama-servers of the same model that run elsewhere: they serve beside ours, loaded or not.
    remotes: Sequence[Replica] = ()
    # Processes that were replaced by ``children`` and finish their calls, or that are to replace them.
    outgoing: list[Child] = field(default_factory=list)
    incoming: Sequence[Child] = ()
    # Processes that serve nobody any more and are not gone yet.
    ending: list[Child] = field(default_factory=list)
    # Its processes are to be replaced as soon as those that end have made room.
    outdated: bool = False

    @property
    def wanted(self) -> bool:
        """It should be loaded: someone waits for it, or has asked for it."""
        if self.phase is not Phase.UNLOADED:
            return False
        if self.asked:
            return True
        # Those that run elsewhere may serve those who wait.
        return self.residency.on_demand and not self.drained and self.pool.waiting > 0 and not self.pool.ready

    @property
    def modest(self) -> bool:
        """It is to be loaded, but nobody waits for it: nothing is to go for it, nor to wait."""
        return self.preloads and not self.pool.waiting

    @property
    def changing(self) -> bool:
        """Other processes are to serve it, and do not yet."""
        return bool(self.incoming) or self.outdated

    @property
    def names(self) -> frozenset[str]:
        """The names of all its processes; those to come take others."""
        return frozenset(child.replica.name for child in self.processes)

    @property
    def stays(self) -> bool:
        """It is not stopped for others: the operator wants that, or no request would bring it back."""
        return self.pinned or not self.residency.on_demand

    @property
    def ready(self) -> bool:
        """One of its processes serves, though it may take no more calls."""
        return any(child.replica.state is State.READY for child in self.children)

    @property
    def rests(self) -> bool:
        """All its processes have crashed, and are to be started again after a pause."""
        return all(child.replica.state is State.BACKOFF for child in self.children)

    @property
    def busy(self) -> bool:
        """Calls are being served."""
        return any(child.replica.busy for child in self.children)

    @property
    def used_at(self) -> float:
        """When it was last used; one that yields counts as the one that was used longest ago, so that it stays so."""
        if self.yielding:
            return 0.0
        return max(self.phase_since, *(child.replica.used_at for child in self.children))

    @property
    def processes(self) -> list[Child]:
        """All children that may have a process."""
        return [*self.children, *self.outgoing, *self.incoming, *self.ending]

    @property
    def replicas(self) -> list[Replica]:
        """All that may serve it."""
        serving = (*self.children, *self.outgoing, *self.incoming)
        return [*(child.replica for child in serving), *self.remotes]

    @property
    def needed_bytes(self) -> int:
        """What it will take when it is loaded."""
        return sum(child.needed_bytes for child in self.children)

    def taken_bytes(self) -> int:
        """What all its processes take now; of one that does not serve, at least what it will take. Asks the system."""
        if self.phase in (Phase.UNLOADED, Phase.FAILED):
            return 0
        return sum(child.taken_bytes() for child in self.processes)

    def hold(self, now: float) -> Hold | None:
        """What keeps it loaded."""
        if self.phase is Phase.UNLOADING:
            return Hold.LEAVING
        if self.stays:
            return Hold.PINNED
        starts = self.phase is Phase.LOADING or not (self.ready or self.rests)
        if starts or self.changing or self.outgoing or self.ending:
            return Hold.LOADING
        if self.busy or (self.pool.waiting and not self.yielding and not self.drained):
            return Hold.BUSY
        if self.drained:
            return None
        unused = self.requested and all(child.replica.used_at <= self.phase_since for child in self.children)
        return Hold.REQUESTED if unused and now - self.phase_since < UNUSED_S and not self.yielding else None

    def resident(self, now: float) -> Resident:
        residency = self.residency
        return Resident(
            self.name, self.taken_bytes(), self.used_at, self.hold(now), residency.group, residency.exclusive
        )

    def to_place(self) -> Wanted:
        return Wanted(self.name, self.needed_bytes, self.residency.group, self.residency.exclusive)
