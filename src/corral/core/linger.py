"""When the slot of an abandoned task is free again.

llama-server notices a closed stream only between tokens, and not at all while
it reads the prompt (8-10 s were measured), so a slot that was given up is
counted until ``/slots`` shows it free. ``/slots`` does not say whose task runs
where; what it shows at the time of leaving bounds it: ours is among those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# One task in one slot, as /slots names it: (slot id, task id).
Task = tuple[int, int]


@dataclass(slots=True)
class Lingering:
    """Slots of one abandoned call. Written by its replica."""

    tasks: int
    # When the slots count as free although never seen so, in seconds of the replica's clock.
    until: float
    # Leases that are known to run and whose tasks may be among those seen; each accounts for its own.
    others: frozenset[int]
    seen: frozenset[Task] = field(default_factory=frozenset)
    looks: int = 0

    def look(self, processing: frozenset[Task], started: frozenset[int], running: Mapping[int, int]) -> None:
        """Take in what /slots shows now.

        ``started`` are the leases that were known to run before it was asked,
        ``running`` the tasks of each lease that there is now. Two looks make up
        the set that ours must be in, as a request that was just sent may not
        be in a slot at the first.
        """
        self.looks += 1
        if self.looks <= 2:
            self.seen |= processing
            self.others |= started
        known = sum(running.get(other, 0) for other in self.others)
        if self.looks >= 2:
            self.tasks = min(self.tasks, max(0, len(self.seen & processing) - known))
