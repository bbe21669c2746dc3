"""When a replica that answers its probes and fails its calls is left alone for a while."""

from corral.core.errors import BadReply, ConnectFailed, ConnectionLost, CorralError, UpstreamFailed, UpstreamTimeout
from corral.core.retry import BATCH_FAILURES

# So many failures in a row, with no success between them, are no accident.
FAILURES = 3
# How long it is left alone at first; each trial that fails doubles it.
PAUSE_S = 1.0
PAUSE_MAX_S = 60.0


def blames(error: CorralError) -> bool:
    """The error is of the replica's own making: neither the client's, nor that of others in its batch, nor loading."""
    match error:
        case ConnectFailed() | BadReply():
            return True
        case ConnectionLost():
            # An idle connection may be closed at any time.
            return not error.reused
        case UpstreamTimeout():
            return error.phase == "connect"
        case UpstreamFailed():
            return error.upstream_status >= 500 and BATCH_FAILURES[0] not in error.message
        case _:
            return False


class Breaker:
    """Closed, open, or half open, when one call at a time may try it. Written by the pool; time comes in as ``now``."""

    __slots__ = ("_failures", "_pause_s", "_trial", "_until")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Another process is behind it now."""
        self._failures = 0
        self._pause_s = PAUSE_S
        self._until = float("-inf")
        self._trial = False

    @property
    def closed(self) -> bool:
        return self._failures < FAILURES

    def lets(self, now: float) -> bool:
        """A call may go there."""
        return self._failures < FAILURES or (now >= self._until and not self._trial)

    def started(self, now: float) -> bool:
        """A call goes there; True when it is the one that tries, which ``ended`` is to be told."""
        if self._failures < FAILURES or now < self._until or self._trial:
            return False
        self._trial = True
        return True

    def ended(self, now: float, *, failed: bool | None, trial: bool) -> float | None:
        """A call has ended there; ``failed`` is None when it does not say how the replica is (its client left).

        The seconds for which it is left alone from now on, if a pause begins.
        """
        if trial:
            self._trial = False
        if failed is False and self._failures:
            self.reset()
        elif failed and (trial or self._failures < FAILURES):
            # The calls that ran when it opened say nothing new when they fail too.
            return self._open_further(now, trial=trial)
        return None

    def _open_further(self, now: float, *, trial: bool) -> float | None:
        self._failures += 1
        if self._failures < FAILURES:
            return None
        if trial:
            self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        self._until = now + self._pause_s
        return self._pause_s
