"""Slots of a llama-server that a call holds, and what became of the call."""

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from corral.core.demand import Demand
from corral.core.errors import UpstreamError
from corral.core.fairness import Account
from corral.core.prefix import BLOCK_BYTES
from corral.core.record import NO_USAGE

if TYPE_CHECKING:
    from corral.upstream.replica import Replica

_lease_ids = count(1)


class Lease:
    """Slots of a replica, held by one attempt until the ``with`` block is left.

    Two writers: the pool until it is granted, then the attempt. ``started`` once
    llama-server is known to work on it, ``abandoned`` from sending it until its
    reply is complete. What it took is told in ``usage`` and ``prefill_s`` (None
    when no token came), and in ``failed`` what it says of the replica (None: nothing).
    """

    __slots__ = (
        "_give_back",
        "abandoned",
        "account",
        "charged",
        "cut",
        "demand",
        "failed",
        "foreseen",
        "id",
        "prefill_s",
        "reason",
        "replica",
        "started",
        "taken_at",
        "tasks",
        "trial",
        "usage",
    )

    def __init__(
        self, replica: "Replica", demand: Demand, account: Account[Any], give_back: Callable[["Lease"], None]
    ) -> None:
        self.id = next(_lease_ids)
        self.replica = replica
        self.demand = demand
        self.tasks = demand.tasks
        # Whose it is, and what it was charged.
        self.account = account
        self.charged = 0.0
        self.taken_at = 0.0
        # The blocks of its prompt that the replica was thought to have, and when that was; None when nobody looked.
        self.foreseen: tuple[int, int] | None = None
        # Why this replica was chosen; empty where there is only one.
        self.reason = ""
        # It tries whether a replica that was left alone is well again.
        self.trial = False
        self.started = False
        self.abandoned = False
        # Breaks off the reply that comes, with this error; set by the attempt.
        self.cut: Callable[[UpstreamError], None] = _nothing_to_cut
        self.usage = NO_USAGE
        self.prefill_s: float | None = None
        self.failed: bool | None = None
        self._give_back = give_back

    @property
    def foreseen_tokens(self) -> int | None:
        """So many tokens were thought to be in the cache; None when nobody looked."""
        if self.foreseen is None:
            return None
        blocks, _ = self.foreseen
        return round(self.usage.prompt_tokens * blocks * BLOCK_BYTES / self.demand.prompt.size_bytes) if blocks else 0

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back(self)


def _nothing_to_cut(_: UpstreamError) -> None:
    pass
