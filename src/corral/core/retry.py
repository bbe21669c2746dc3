"""Whether a failed attempt at a replica may be repeated, and when.

Nothing here knows whether a byte has reached the client: who asks has seen
that none has. A generation has no side effects, so a reply that nobody saw may
be asked for again.
"""

from typing import Protocol

from corral.core.errors import (
    BadReply,
    ConnectFailed,
    ConnectionLost,
    CorralError,
    UpstreamFailed,
    UpstreamLoading,
    UpstreamTimeout,
    Withdrawn,
)

# Statuses that speak of the moment, not of the request: too many requests, bad
# gateway, unavailable, gateway timeout (the latter three from a proxy in between).
PASSING_STATUSES = frozenset({429, 502, 503, 504})

# llama-server answers 500 for a client's mistake too, so a 500 is not repeated.
# But these two go to every slot of a batch for the fault of one of them
# (server-context.cpp), and the others did nothing wrong.
BATCH_FAILURES = ("Context size has been exceeded", "Compute error")

# Enough doublings to reach any limit; keeps the power small for absurd attempt counts.
_MAX_DOUBLINGS = 32


class RetryPolicy(Protocol):
    """The settings: tries in all, first and longest pause, the time for all of it, and how often to go on elsewhere."""

    @property
    def attempts(self) -> int: ...

    @property
    def backoff_s(self) -> float: ...

    @property
    def backoff_max_s(self) -> float: ...

    @property
    def deadline_s(self) -> float: ...

    @property
    def resumes(self) -> int: ...


def may_retry(error: CorralError) -> bool:
    """The error is the replica's, it passes, and the same request can succeed elsewhere or later."""
    match error:
        case ConnectFailed() | ConnectionLost() | UpstreamLoading() | BadReply() | Withdrawn():
            return True
        case UpstreamTimeout():
            # In the later phases the replica has the request and may still be working on it.
            return error.phase == "connect"
        case UpstreamFailed():
            return error.upstream_status in PASSING_STATUSES or any(text in error.message for text in BATCH_FAILURES)
        case _:
            return False


def may_resume(error: CorralError, *, elsewhere: bool) -> bool:
    """The error broke an answer off whose rest can be had; ``elsewhere``: of a replica that has not been tried."""
    if isinstance(error, UpstreamTimeout) and error.phase != "connect":
        # The one that stalls may be alive, and is not given the same work twice.
        return elsewhere
    return may_retry(error)


def delay_s(attempt: int, policy: RetryPolicy, jitter: float, retry_after_s: float | None = None) -> float:
    """The pause after failed attempt number ``attempt`` (from 1): it doubles up to ``backoff_max_s``.

    ``jitter`` (0 to 1, random) moves it between half and whole, so that those
    who failed together do not come back together. Never shorter than ``retry_after_s``.
    """
    whole_s = min(policy.backoff_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS), policy.backoff_max_s)
    return max(whole_s * (1 + jitter) / 2, retry_after_s or 0.0)


class Tries:
    """Counts the attempts at one call that failed. One writer: who makes them."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failed = 0
        self._resumes = 0
        # So many events of the answer had come when it was last gone on with, and when that was.
        self._events = 0
        self._since: float | None = None

    def retry_s(
        self, error: CorralError, began: float, now: float, jitter: float, *, elsewhere: bool = False
    ) -> float | None:
        """The pause before the call is tried again; None to give up, as attempts are used up or it takes too long.

        ``began``: the first attempt. ``elsewhere``: a replica that has not been
        tried is ready; what the others need does not concern it.
        """
        self._failed += 1
        return self._pause_s(error, now - began, jitter, elsewhere=elsewhere) if may_retry(error) else None

    def resume_s(
        self, error: CorralError, now: float, jitter: float, events: int, *, elsewhere: bool = False
    ) -> float | None:
        """The pause before its answer is gone on with, of which ``events`` have come; else as ``retry_s``.

        An attempt that got further starts the count anew: what happens to a long answer now is not
        what happened to it minutes ago.
        """
        self._failed += 1
        if events > self._events or self._since is None:
            self._events, self._since, self._failed = events, now, 1
            self._resumes += 1
        if self._resumes > self._policy.resumes or not may_resume(error, elsewhere=elsewhere):
            return None
        return self._pause_s(error, now - self._since, jitter, elsewhere=elsewhere)

    def _pause_s(self, error: CorralError, elapsed_s: float, jitter: float, *, elsewhere: bool) -> float | None:
        if self._failed >= self._policy.attempts:
            return None
        if elsewhere or (isinstance(error, ConnectionLost) and error.reused):
            # In the second case the replica had closed an idle connection, as it may; a new one needs no pause.
            pause_s = 0.0
        else:
            pause_s = delay_s(self._failed, self._policy, jitter, error.retry_after_s)
        return None if elapsed_s + pause_s > self._policy.deadline_s else pause_s
