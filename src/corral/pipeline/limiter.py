"""The limit on each client's requests: refuses at once, never makes anyone wait."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from corral.core.errors import RateLimited, Unavailable
from corral.core.headers import Header, go_duration
from corral.core.limits import Decision, SlidingWindow
from corral.core.principal import Principal


class Reservation:
    """One request's share of its client's limit. One writer: the exchange that holds it, in a ``with`` block.

    A request that ends in ``Unavailable`` inside the block did not run and is refunded.
    """

    __slots__ = ("_decision", "_refunded", "_window")

    def __init__(self, window: SlidingWindow | None, decision: Decision | None) -> None:
        self._window = window
        self._decision = decision
        self._refunded = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Unavailable):
            self.refund()

    def headers(self) -> list[Header]:
        """The ``x-ratelimit-*`` headers, as things stood when the request was admitted; none without a limit."""
        return [] if self._decision is None else _headers(self._decision)

    def refund(self) -> None:
        """Give the share back, because nothing was done for it; more than once is once."""
        if self._window is None or self._decision is None or self._refunded:
            return
        self._refunded = True
        if self._decision.stamp is not None:
            self._window.give_back(self._decision.stamp)


class Limiter:
    """Counts the requests of each client, whichever of its keys they carry. One writer: itself, synchronously.

    Clients come from the configuration, so that their number is bounded.
    ``requests`` is the limit in any ``window_s`` seconds; 0 means none.
    """

    def __init__(self, requests: int, window_s: float, clock: Callable[[], float]) -> None:
        self._requests = requests
        self._window_s = window_s
        self._clock = clock
        self._windows: dict[str, SlidingWindow] = {}

    def admit(self, principal: Principal) -> Reservation:
        """Take one request of the client's limit, or raise RateLimited, which consumes nothing.

        The error's ``headers`` are the ``x-ratelimit-*`` ones.
        """
        client = principal.client
        if self._requests == 0:
            return Reservation(None, None)
        window = self._windows.get(client)
        if window is None:
            window = self._windows[client] = SlidingWindow(self._requests, self._window_s)
        decision = window.try_take(self._clock())
        if not decision.admitted:
            raise self._refusal(client, decision)
        return Reservation(window, decision)

    def _refusal(self, client: str, decision: Decision) -> RateLimited:
        retry_after_s = decision.retry_after_s or 0.0
        return RateLimited(
            f"client '{client}' has reached its limit of {decision.limit} requests per {go_duration(self._window_s)}; "
            f"try again in {go_duration(retry_after_s)}, the whole limit is free in {go_duration(decision.reset_s)}",
            retry_after_s=retry_after_s,
            headers=tuple(_headers(decision)),
        )


def _headers(decision: Decision) -> list[Header]:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % decision.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % decision.remaining),
        (b"x-ratelimit-reset-requests", go_duration(decision.reset_s).encode()),
    ]
