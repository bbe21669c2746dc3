"""Watches the replicas that run elsewhere; those of our own processes are watched with these."""

import asyncio
from functools import partial

from corral.upstream.replica import Replica
from corral.upstream.shared.sharing import Sharing


class Watches:
    """One task for each replica that is watched, and another where it is shared.

    Writer: itself; ``begin`` works until it is ``closed``.
    """

    def __init__(self, sharing: Sharing | None = None) -> None:
        self.group: asyncio.TaskGroup | None = None
        self.closed = False
        self._sharing = sharing
        self._tasks: dict[Replica, list[asyncio.Task[None]]] = {}

    def begin(self, replica: Replica) -> None:
        """Keep its state true from now on."""
        if self.group is None or self.closed:
            raise RuntimeError("replicas are watched while Corral runs")
        tasks = [self.group.create_task(replica.watch(), name=f"corral-watch {replica.name}")]
        if self._sharing is not None and replica.shared is not None:
            tasks.append(self.group.create_task(self._sharing.keep(replica), name=f"corral-share {replica.name}"))
        self._tasks[replica] = tasks

    def end(self, replica: Replica) -> None:
        """It is not in the settings any more; one that is shared is watched until its last call has ended."""
        if replica.shared is not None and replica.busy:
            # Others must not be given its slots before.
            replica.on_idle = partial(self._end, replica)
        else:
            self._end(replica)

    def close(self) -> None:
        """Watch nothing any more, and nothing new."""
        self.closed = True
        for replica in list(self._tasks):
            self._end(replica)

    def _end(self, replica: Replica) -> None:
        for task in self._tasks.pop(replica, ()):
            task.cancel()
