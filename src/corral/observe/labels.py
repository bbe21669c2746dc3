"""Keeps the number of a label's values bounded."""

# Each value of a label is a series for ever, in Corral and in Prometheus. No
# sensible installation has more clients or models than this.
LIMIT = 1000

# For what is absent, and for what comes after the limit is reached.
NONE = "none"
OTHER = "other"


class Bounded:
    """Passes the first ``limit`` distinct values of one label and makes OTHER of the rest. One writer: itself."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._room = limit
        self._known = {"": NONE}

    def __call__(self, value: str) -> str:
        known = self._known.get(value)
        return self._learn(value) if known is None else known

    def _learn(self, value: str) -> str:
        if self._room == 0:
            return OTHER
        self._room -= 1
        self._known[value] = value
        return value
