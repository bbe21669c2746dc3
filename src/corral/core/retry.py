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
    """The settings of retries: tries in all, the first pause, the longest pause, and the time for all of it."""

    @property
    def attempts(self) -> int: ...

    @property
    def backoff_s(self) -> float: ...

    @property
    def backoff_max_s(self) -> float: ...

    @property
    def deadline_s(self) -> float: ...


def may_retry(error: CorralError) -> bool:
    """The error is the replica's, it passes, and the same request can succeed elsewhere or later."""
    match error:
        case ConnectFailed() | ConnectionLost() | UpstreamLoading() | BadReply():
            return True
        case UpstreamTimeout():
            # In the later phases the replica has the request and may still be working on it.
            return error.phase == "connect"
        case UpstreamFailed():
            return error.upstream_status in PASSING_STATUSES or any(text in error.message for text in BATCH_FAILURES)
        case _:
            return False


def delay_s(attempt: int, policy: RetryPolicy, jitter: float, retry_after_s: float | None = None) -> float:
    """The pause after failed attempt number ``attempt`` (from 1): it doubles up to ``backoff_max_s``.

    ``jitter`` (0 to 1, random) moves it between half and whole, so that those
    who failed together do not come back together. Never shorter than ``retry_after_s``.
    """
    whole_s = min(policy.backoff_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS), policy.backoff_max_s)
    return max(whole_s * (1 + jitter) / 2, retry_after_s or 0.0)


def next_delay(
    error: CorralError,
    attempts_made: int,
    elapsed_s: float,
    policy: RetryPolicy,
    jitter: float,
    *,
    elsewhere: bool = False,
) -> float | None:
    """The pause before the next attempt; None to give up, as attempts are used up or the deadline would pass.

    ``elapsed_s`` counts from the first attempt's start. ``elsewhere``: a
    replica that has not been tried is ready; what the others need does not
    concern it.
    """
    if attempts_made >= policy.attempts or not may_retry(error):
        return None
    if elsewhere or (isinstance(error, ConnectionLost) and error.reused):
        # In the second case the replica had closed an idle connection, as it may; a new one needs no pause.
        pause_s = 0.0
    else:
        pause_s = delay_s(attempts_made, policy, jitter, error.retry_after_s)
    return None if elapsed_s + pause_s > policy.deadline_s else pause_s
