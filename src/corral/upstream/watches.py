"""Watches the replicas that run elsewhere; those of our own processes are watched with these."""

import asyncio

from corral.upstream.replica import Replica


class Watches:
    """One task for each replica that is watched. Writer: itself; ``begin`` works until it is ``closed``."""

    def __init__(self) -> None:
        self.group: asyncio.TaskGroup | None = None
        self.closed = False
        self._tasks: dict[Replica, asyncio.Task[None]] = {}

    def begin(self, replica: Replica) -> None:
        """Keep its state true from now on."""
        if self.group is None or self.closed:
            raise RuntimeError("replicas are watched while Corral runs")
        self._tasks[replica] = self.group.create_task(replica.watch(), name=f"corral-watch {replica.name}")

    def end(self, replica: Replica) -> None:
        """It is not in the settings any more."""
        self._tasks.pop(replica).cancel()

    def close(self) -> None:
        """Watch nothing any more, and nothing new."""
        self.closed = True
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
