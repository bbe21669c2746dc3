"""The replicas of one model, and the one queue in front of their slots."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from corral.config import QueueSettings
from corral.core.errors import CorralError, InvalidRequest, NotReady, QueueFull, QueueTimeout, ShuttingDown
from corral.core.lifecycle import State
from corral.upstream.replica import Lease, Replica

# How long a refused client is asked to wait while nothing has been measured yet.
DEFAULT_RETRY_S = 1.0
# The weight of the newest lease in the mean length of leases.
HELD_SMOOTHING = 0.2


@dataclass(slots=True, eq=False)
class Waiter:
    """A call in the queue. Written by the pool."""

    tasks: int
    avoid: Replica | None
    granted: asyncio.Future[Lease]


class Pool:
    """First come, first served, and never more tasks at a replica than it has slots.

    One writer: ``dispatch``, synchronous, called whenever a waiter comes or goes,
    a lease ends or a replica changes. A call for more slots than are free waits
    at the head of the queue and is not overtaken.
    """

    def __init__(self, name: str, replicas: Sequence[Replica], settings: QueueSettings) -> None:
        self.name = name
        self.settings = settings
        self._waiters: deque[Waiter] = deque()
        self._held_s = 0.0
        self._closed = False
        # Told of a call that has to wait, while no replica is ready; set by who loads models.
        self.on_wanted: Callable[[], None] = _nothing
        # Why nobody need wait for this model; written by who loads models and by the operator.
        self.absent: str | None = None
        # Not loaded, and the first who waits will have it loaded.
        self.sleeping = False
        # When a model that loads is likely to be ready, on the loop's clock.
        self.ready_at: float | None = None
        self.change(replicas)

    def change(self, replicas: Sequence[Replica]) -> None:
        """Go to these replicas from now on; what others have been leased is given back all the same."""
        self.replicas = tuple(replicas)
        for replica in self.replicas:
            replica.on_change = self.dispatch
        self.dispatch()

    @property
    def ready(self) -> bool:
        return any(replica.ready for replica in self.replicas)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def slots(self) -> int:
        """The slots of the largest replica that is ready: what one call can take at most; 0 when none is ready."""
        return max((replica.slots for replica in self.replicas if replica.ready), default=0)

    @property
    def why(self) -> str:
        """Why no replica is ready, for clients: a state, and nothing internal."""
        if self.absent is not None:
            return self.absent
        states = {replica.state for replica in self.replicas}
        if states & {State.LOADING, State.UNKNOWN, State.BACKOFF}:
            return f"model '{self.name}' is loading"
        if State.STOPPED in states:
            return f"model '{self.name}' is not loaded"
        if State.READY in states:
            return f"model '{self.name}' takes no requests at the moment"
        if State.FAILED in states:
            return f"model '{self.name}' could not be started"
        return f"the server of model '{self.name}' cannot be reached"

    async def lease(self, tasks: int, *, avoid: Replica | None = None) -> Lease:
        """Wait for ``tasks`` slots of one replica, another than ``avoid`` if one is ready.

        Raises InvalidRequest when no replica has that many slots and QueueFull
        at once, QueueTimeout or NotReady when patience ends. The lease is a
        context manager; leaving it gives the slots back without awaiting.
        """
        if not self._waiters and (replica := self._pick(tasks, avoid)) is not None:
            return self._take(replica, tasks)
        loop = asyncio.get_running_loop()
        waiter = Waiter(tasks, avoid, loop.create_future())
        self._join(waiter)
        patience = loop.call_later(self.settings.patience_s, self._expire, waiter)
        unready_patience = loop.call_later(self.settings.unready_patience_s, self._expire_if_unready, waiter)
        try:
            return await waiter.granted
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            patience.cancel()
            unready_patience.cancel()

    def dispatch(self) -> None:
        """Give free slots to the first in the queue, and to the next, while it can."""
        while self._waiters and self._settle(self._waiters[0]):
            self._waiters.popleft()

    def refuse(self, error: CorralError) -> None:
        """Let nobody who waits now wait any longer."""
        for waiter in self._waiters:
            if not waiter.granted.done():
                waiter.granted.set_exception(error)
        self.dispatch()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        self.dispatch()

    def retry_after_s(self) -> float:
        """When a slot is likely to be free for one who comes back: the queue's length times the mean lease."""
        slots = sum(replica.slots for replica in self.replicas if replica.ready)
        if not slots and self.ready_at is not None:
            return max(DEFAULT_RETRY_S, float(ceil(self.ready_at - asyncio.get_running_loop().time())))
        if not slots or not self._held_s:
            return DEFAULT_RETRY_S
        return max(DEFAULT_RETRY_S, float(ceil((len(self._waiters) + 1) * self._held_s / slots)))

    def _join(self, waiter: Waiter) -> None:
        self._waiters.append(waiter)
        self.dispatch()
        # Who is served at once does not wait, however short the queue may be.
        if not waiter.granted.done() and (error := self._hopeless(waiter) or self._full()) is not None:
            self._waiters.remove(waiter)
            raise error
        if not waiter.granted.done() and not self.ready:
            self.on_wanted()

    def _full(self) -> CorralError | None:
        waiting = len(self._waiters) - 1
        if waiting < self.settings.length:
            return None
        return QueueFull(
            f"{waiting} requests are waiting for model '{self.name}' already; try again later",
            retry_after_s=self.retry_after_s(),
        )

    def _settle(self, waiter: Waiter) -> bool:
        """Grant or refuse what the waiter asks for; False when it has to wait."""
        if waiter.granted.done():
            return True
        if (replica := self._pick(waiter.tasks, waiter.avoid)) is not None:
            waiter.granted.set_result(self._take(replica, waiter.tasks))
        elif (error := self._hopeless(waiter)) is not None:
            waiter.granted.set_exception(error)
        else:
            return False
        return True

    def _expire_if_unready(self, waiter: Waiter) -> None:
        if not self.ready:
            self._expire(waiter)

    def _expire(self, waiter: Waiter) -> None:
        if not waiter.granted.done():
            waiter.granted.set_exception(self._impatient())
            # Those behind it go on at once; their own patience may end in this same moment.
            self.dispatch()

    def _impatient(self) -> CorralError:
        if not self.ready:
            return NotReady(f"{self.why}; try again later", retry_after_s=self.retry_after_s())
        return QueueTimeout(
            f"no slot of model '{self.name}' became free within {self.settings.patience_s:g} s; try again later",
            retry_after_s=self.retry_after_s(),
        )

    def _leave(self, waiter: Waiter) -> None:
        """A waiter goes without its lease: its place is gone, and what was granted meanwhile is given back."""
        granted = waiter.granted
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._give_back(granted.result())
        else:
            self.dispatch()

    def _pick(self, tasks: int, avoid: Replica | None) -> Replica | None:
        """The replica with most free slots among those that can take the call, the avoided one last."""
        if self._closed:
            return None
        fitting = [replica for replica in self.replicas if replica.free >= tasks]
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        return max(fitting, key=lambda each: (each is not avoid, each.free * each.weight, -each.served))

    def _take(self, replica: Replica, tasks: int) -> Lease:
        return replica.take(tasks, asyncio.get_running_loop().time(), self._give_back)

    def _hopeless(self, waiter: Waiter) -> CorralError | None:
        if self._closed:
            return ShuttingDown("the server is shutting down", retry_after_s=DEFAULT_RETRY_S)
        if self.absent is not None and not self.ready:
            return NotReady(self.absent)
        if all(replica.state is State.FAILED for replica in self.replicas):
            return NotReady(f"{self.why}; the operator has to look at it")
        # One that is not ready at the moment comes back with as many slots as it had.
        slots = max(replica.slots for replica in self.replicas)
        if self.ready and waiter.tasks > slots:
            return too_many_tasks(waiter.tasks, slots)
        return None

    def _give_back(self, lease: Lease) -> None:
        held_s = asyncio.get_running_loop().time() - lease.taken_at
        self._held_s += (held_s - self._held_s) * (HELD_SMOOTHING if self._held_s else 1.0)
        lease.replica.put_back(lease)
        self.dispatch()


def too_many_tasks(tasks: int, slots: int) -> InvalidRequest:
    """A call that no replica can ever take; llama-server refuses it too (n must be at most its slots)."""
    return InvalidRequest(
        f"the request makes {tasks} tasks at once (prompts x n) and this model has {slots} slots; ask for no more",
        param="n",
        code="invalid_value",
    )


def _nothing() -> None:
    pass
