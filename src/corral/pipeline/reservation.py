"""One request's share of its client's limits."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from corral.core.call import Call
from corral.core.errors import Unavailable
from corral.core.headers import Header
from corral.core.record import Record

# Called once, with the tokens that were used and whether the request ran at all. Does not await.
Settle = Callable[[int, bool], None]


class Reservation:
    """Held in a ``with`` block by the exchange, its one writer; settled on leaving it, once, however it is left.

    A request that ends in ``Unavailable`` did not run, and is refunded. One
    that fails otherwise has used what the record says: nothing, when it does
    not say.
    """

    __slots__ = ("_record", "_settle", "_settles", "call", "headers")

    def __init__(
        self, call: Call, headers: list[Header], record: Record, settle: Settle | None, *, settles: bool
    ) -> None:
        """``settles``: there is something to count also when all has gone well."""
        # As the limits let it pass: ``max_tokens`` that was not given may have become less.
        self.call = call
        # ``x-ratelimit-*``, as things stood when the request was admitted.
        self.headers = headers
        self._record = record
        self._settle = settle
        self._settles = settles

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ran = not isinstance(error, Unavailable)
        if self._settle is None or (ran and not self._settles):
            return
        settle, self._settle = self._settle, None
        settle(self._record.usage.total_tokens, ran)
