"""One llama-server as the pool sees it: where it is, how it is, and what it is busy with."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from corral.core.breaker import Breaker
from corral.core.errors import CorralError, UpstreamError, UpstreamLoading, Withdrawn
from corral.core.holding import Holding
from corral.core.lifecycle import State, Transition
from corral.core.linger import Lingering, Task
from corral.core.prefix import PrefixIndex
from corral.upstream.address import Address
from corral.upstream.lease import Lease
from corral.upstream.probe import Facts, Prober

log = logging.getLogger("corral.replica")

# A ready server is asked now and then whether it still is; one that is not, often at first.
READY_INTERVAL_S = 5.0
RETRY_INTERVAL_S = 0.1
RETRY_INTERVAL_MAX_S = 2.0
# A slot that was given up is looked at this often, and counted as free after
# this long, should the server never show it so.
LINGER_INTERVAL_S = 0.05
LINGER_LIMIT_S = 120.0

# A server that cannot be reached may be alive all the same, and still be at work for those who have left.
MAY_BE_BUSY = frozenset({State.READY, State.UNREACHABLE})


@dataclass(slots=True)
class Clocks:
    """The two clocks of the process: monotonic seconds, and seconds since 1970."""

    monotonic: Callable[[], float]
    unix: Callable[[], float]


class Replica:
    """A llama-server and its slots.

    Two writers, apart: ``watch`` writes the state and the facts; the pool writes
    the leases and what it has learned of them: ``breaker``, ``prefixes``, ``turn``.
    """

    def __init__(
        self,
        name: str,
        model: str,
        prober: Prober,
        clocks: Clocks,
        *,
        address: Address | None = None,
        key: str | None = None,
        weight: float = 1.0,
    ) -> None:
        self.name = name
        self.model = model
        self.address = address
        self.key = key
        # How much of the work it is to get beside the other replicas.
        self.weight = weight
        # What other Corrals leave of its slots; None: nobody else uses it.
        self.shared: Holding | None = None
        self.breaker = Breaker()
        self.prefixes = PrefixIndex()
        self.state = State.UNKNOWN
        self.why = "not asked yet"
        self.facts: Facts | None = None
        # How many calls it has taken; and that over its weight, without those that it missed while it was away.
        self.served = 0
        self.turn = 0.0
        # It finishes the calls it has and takes no more; written by the loader.
        self.draining = False
        # The same, written by the operator.
        self.set_aside = False
        # When it took its last call, or gave one back, on the monotonic clock.
        self.used_at = 0.0
        # Told when the last lease has ended; set by who waits for that.
        self.on_idle: Callable[[], None] | None = None
        self.on_transition: Callable[[Transition], None] = _ignore
        self.on_change: Callable[[], None] = _nothing
        self._leases: dict[int, Lease] = {}
        # The sum of their tasks.
        self._leased = 0
        self._lingering: list[Lingering] = []
        self._prober = prober
        self._clocks = clocks
        self._nudge = asyncio.Event()
        self._linger_nudge = asyncio.Event()

    @property
    def ready(self) -> bool:
        """It takes calls."""
        return self.state is State.READY and not (self.draining or self.set_aside)

    @property
    def slots(self) -> int:
        return self.facts.slots if self.facts else 0

    @property
    def context(self) -> int | None:
        """Of one slot, in tokens; None when it is not known."""
        return self.facts.context if self.facts else None

    @property
    def busy(self) -> int:
        """Slots that are leased, or were given up and are not seen free yet."""
        return self._leased + self.lingering if self._lingering else self._leased

    @property
    def lingering(self) -> int:
        return sum(each.tasks for each in self._lingering)

    @property
    def usable(self) -> int:
        """The slots that one call can have at most, as things stand."""
        return self.slots if self.shared is None else self.shared.usable(self.slots)

    @property
    def free(self) -> int:
        """Slots that calls can have; of a shared one, as far as is known here: ``lets`` says whether it is certain."""
        if not self.ready:
            return 0
        if self.shared is None:
            return max(0, self.slots - self.busy)
        return self.shared.free(self.slots, self.busy)

    @property
    def promised(self) -> int:
        """Free slots that are being asked for."""
        return 0 if self.shared is None else self.shared.promised

    @property
    def elsewhere(self) -> int:
        """Slots that other Corrals hold, as last told."""
        return 0 if self.shared is None else self.shared.elsewhere

    def lets(self, tasks: int) -> bool:
        """So many of the free slots may be leased, and need not be asked for before."""
        return self.shared is None or self.shared.lets(tasks)

    def promise(self, tasks: int) -> None:
        """So many of the free slots of a shared replica will be asked for."""
        if self.shared is not None:
            self.shared.promised = tasks

    def want(self, tasks: tuple[int, ...]) -> None:
        """These calls are to start at a shared replica; ask for their slots."""
        if self.shared is not None:
            self.shared.want(tasks, self.busy)

    def take(self, lease: Lease) -> None:
        """Its slots are leased; the pool has seen that they are free."""
        if self.shared is not None:
            self.shared.take(lease.tasks)
        self._leases[lease.id] = lease
        self._leased += lease.tasks
        self.served += 1
        self.used_at = self._clocks.monotonic()

    def put_back(self, lease: Lease) -> None:
        """End a lease; the slots of an abandoned one linger until they are seen free."""
        del self._leases[lease.id]
        self._leased -= lease.tasks
        self.used_at = self._clocks.monotonic()
        if lease.abandoned and self.state in MAY_BE_BUSY and self.facts and self.facts.shows_slots:
            until = self._clocks.monotonic() + LINGER_LIMIT_S
            self._lingering.append(Lingering(lease.tasks, until, self._started()))
            self._linger_nudge.set()
        self._held_less()

    def judge(self, lease: Lease, now: float) -> float | None:
        """What an ended call says of it; the seconds that it is to be left alone, if so. A change of mind is told."""
        trusted = self.breaker.closed
        pause_s = self.breaker.ended(now, failed=lease.failed, trial=lease.trial)
        if self.breaker.closed is not trusted:
            event, level = (
                ("replica left alone", logging.WARNING) if trusted else ("replica trusted again", logging.INFO)
            )
            log.log(level, event, extra={"fields": {"model": self.model, "replica": self.name}})
        return pause_s

    def drain(self, *, draining: bool = True) -> None:
        """Take no more calls, or take them again."""
        self.draining = draining
        self.on_change()

    def put_aside(self, *, aside: bool) -> None:
        """The operator wants no calls to be taken, or wants them again."""
        self.set_aside = aside
        self.on_change()

    def cut_off(self) -> None:
        """Break off all replies that come from it; they may go on elsewhere."""
        for lease in list(self._leases.values()):
            lease.cut(Withdrawn("the model server was taken out of service"))

    def suspect(self, error: CorralError) -> None:
        """An attempt failed in a way that makes a server that was ready suspicious: ask it now."""
        if self.state is not State.READY:
            # Whoever knows better has said so already: the child behind it may have died.
            return
        state = State.LOADING if isinstance(error, UpstreamLoading) else State.UNREACHABLE
        self.become(state, error.message)
        self._nudge.set()

    def move(self, address: Address | None, key: str | None) -> None:
        """It listens at ``address`` now, or nowhere, and takes this key: ask it at once."""
        self.address, self.key = address, key
        self.breaker.reset()
        self._nudge.set()

    def go_by(self, key: str | None, weight: float) -> None:
        """Other settings of a server that runs elsewhere count from now on."""
        self.weight = weight
        if key != self.key:
            self.move(self.address, key)

    def become(self, state: State, why: str) -> None:
        """Change the state and tell who wants to know; staying the same tells nobody."""
        old, self.state, self.why = self.state, state, why
        if state not in MAY_BE_BUSY:
            # Whatever ran there is over, or will be by the time it answers again. Nothing is left of its cache.
            self._lingering.clear()
            self.prefixes.clear()
            self._held_less()
        if state is not old:
            self.on_transition(Transition(self.name, self.model, old, state, why, self._clocks.unix()))
        self.on_change()

    async def watch(self) -> None:
        """Keep the state true, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_health(), name=f"corral-health {self.name}")
            tasks.create_task(self._watch_lingering(), name=f"corral-linger {self.name}")

    async def _watch_health(self) -> None:
        retry_s = RETRY_INTERVAL_S
        while True:
            if self.address is not None:
                await self._ask(self.address)
            well = self.state is State.READY
            if well:
                retry_s = RETRY_INTERVAL_S
            if await self._nudged(READY_INTERVAL_S if well else retry_s):
                retry_s = RETRY_INTERVAL_S
            else:
                retry_s = min(retry_s * 2, RETRY_INTERVAL_MAX_S)

    async def _ask(self, address: Address) -> None:
        try:
            facts = await self._prober.facts(address, self.key)
        except UpstreamLoading as error:
            self._found(address, State.LOADING, error.message)
        except UpstreamError as error:
            self._found(address, State.UNREACHABLE, error.message)
        else:
            if self.address == address:
                self.facts = facts
                self._found(address, State.READY, f"{facts.slots} slots")

    def _found(self, address: Address, state: State, why: str) -> None:
        # The child may have died or moved while its old address was being asked.
        if self.address == address:
            self.become(state, why)

    async def _nudged(self, pause_s: float) -> bool:
        try:
            async with asyncio.timeout(pause_s):
                await self._nudge.wait()
        except TimeoutError:
            return False
        self._nudge.clear()
        return True

    async def _watch_lingering(self) -> None:
        while True:
            await self._linger_nudge.wait()
            self._linger_nudge.clear()
            while self._lingering:
                await self._look_at_slots()
                await asyncio.sleep(LINGER_INTERVAL_S if self._lingering else 0)

    def _started(self) -> frozenset[int]:
        return frozenset(lease.id for lease in self._leases.values() if lease.started)

    async def _look_at_slots(self) -> None:
        # Who has started by now is seen, if it still runs; who starts while we ask may be seen or not.
        started = self._started()
        processing = await self._processing()
        if processing is not None:
            running = {lease.id: lease.tasks for lease in self._leases.values()}
            for each in self._lingering:
                each.look(processing, started, running)
        now = self._clocks.monotonic()
        self._lingering = [each for each in self._lingering if each.tasks and each.until > now]
        self.on_change()
        self._held_less()

    def _held_less(self) -> None:
        """Tell who waits for that."""
        if self.shared is not None:
            self.shared.look(self.busy)
        if self.on_idle is not None and not self.busy:
            self.on_idle()

    async def _processing(self) -> frozenset[Task] | None:
        """What is being worked on; None while it cannot be asked."""
        if self.address is None or self.state is not State.READY:
            return None
        try:
            return await self._prober.processing(self.address, self.key)
        except UpstreamError:
            return None


def _ignore(_: Transition) -> None:
    pass


def _nothing() -> None:
    pass
