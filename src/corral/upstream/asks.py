"""What those who wait for shared replicas ask of them."""

from collections.abc import Collection, Iterable

from corral.upstream.replica import Replica


class Asks:
    """The calls that are to start at shared replicas, as one pass of the queue finds them. One writer: the pool."""

    def __init__(self, shared: Iterable[Replica]) -> None:
        self._tasks: dict[Replica, list[int]] = {replica: [] for replica in shared}
        # How many calls have been promised slots that are still to be asked for.
        self.promised = 0

    def begin(self) -> None:
        """Another pass."""
        self.promised = 0
        for replica, tasks in self._tasks.items():
            tasks.clear()
            replica.promise(0)

    def promise(self, replica: Replica, tasks: int) -> None:
        """A call takes slots that are free there as far as one knows."""
        self.promised += 1
        self._tasks[replica].append(tasks)
        replica.promise(sum(self._tasks[replica]))

    def wait(self, replicas: Collection[Replica], tasks: int) -> None:
        """A call waits for the first of these that has room; those behind it do not."""
        for replica in replicas:
            if replica in self._tasks:
                self._tasks[replica].append(tasks)

    def tell(self) -> None:
        """The pass is over."""
        for replica, tasks in self._tasks.items():
            replica.want(tuple(tasks))

    def end(self) -> None:
        """These replicas are none of the pool's any more."""
        self.begin()
        self.tell()
