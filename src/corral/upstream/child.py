"""A replica whose llama-server is a process of ours, which comes and goes."""

import asyncio
from collections.abc import Callable

from corral.core.footprint import Footprint
from corral.core.lifecycle import State, Transition
from corral.upstream.probe import Prober
from corral.upstream.replica import Replica
from corral.upstream.spec import EngineSpec
from corral.upstream.supervisor import Supervisor


class Child:
    """The two sides of one llama-server: the replica that the pool sees, and the process behind it.

    One writer: the loader that begins and ends it. Each begin has a new
    supervisor; what its process does, happens to the replica.
    """

    def __init__(
        self,
        spec: EngineSpec,
        footprint: Footprint,
        replica: Replica,
        prober: Prober,
        on_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.footprint = footprint
        self.replica = replica
        self._prober = prober
        self._on_change = on_change
        # The most memory that its process was seen to take.
        self._seen_bytes = 0
        self._supervisor: Supervisor | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def failed(self) -> bool:
        """Nobody tries to start its process any more."""
        return self.replica.state is State.FAILED

    @property
    def why(self) -> str:
        """What is told of its process, for operators."""
        return self._supervisor.why if self._supervisor else "not started yet"

    @property
    def pid(self) -> int | None:
        return self._supervisor.pid if self._supervisor else None

    @property
    def resident_bytes(self) -> int | None:
        """The memory that its process takes; None when there is none, or where the system does not tell."""
        return self._supervisor.resident_bytes if self._supervisor else None

    @property
    def needed_bytes(self) -> int:
        """What its process will take when it serves."""
        return self.footprint.bytes if self.footprint.told else self._seen_bytes or self.footprint.bytes

    def taken_bytes(self) -> int:
        """What its process takes now; while it does not serve, at least what it will take. Asks the system."""
        if self.footprint.told:
            return self.footprint.bytes
        now = self.resident_bytes
        if now is None or self.replica.state is not State.READY:
            return max(now or 0, self.needed_bytes)
        self._seen_bytes = max(self._seen_bytes, now)
        return now

    def log_tail(self) -> list[str]:
        """The last lines of its process, or of the one that has ended."""
        return self._supervisor.log_tail() if self._supervisor else []

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Start the process and keep it serving, by tasks of this group, until ``end``."""
        replica = self.replica
        self._supervisor = supervisor = Supervisor(
            self.spec, self._prober.facts, lambda transition: self._follow(supervisor, transition), replica=replica.name
        )
        replica.drain(draining=False)
        self._tasks = (
            tasks.create_task(supervisor.run(), name=f"corral-supervisor {replica.name}"),
            tasks.create_task(replica.watch(), name=f"corral-watch {replica.name}"),
        )

    async def end(self) -> None:
        """Stop the process; returns when it is gone, and its memory with it."""
        # It may be begun anew while this waits.
        supervisor, tasks, self._tasks = self._supervisor, self._tasks, ()
        if supervisor is not None:
            await supervisor.stop()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _follow(self, supervisor: Supervisor, transition: Transition) -> None:
        """The replica is ready as soon as it has told its facts."""
        if transition.new is State.READY:
            self.replica.move(supervisor.address, supervisor.api_key)
        else:
            self.replica.move(None, None)
            self.replica.become(transition.new, transition.why)
        self._on_change()
