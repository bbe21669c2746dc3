"""The processes that a process has started, all of them, for who has to find out whether one is left."""

import threading
from types import TracebackType
from typing import Self

from corral.upstream.process import start_time
from corral_process import children_of

# A llama-server that is to serve lives far longer.
LOOK_S = 0.05


class Offspring:
    """Watches for children within its block. One writer: its thread.

    A child is known by its number and its start, so that a stranger who gets the number later is not taken for it.
    """

    def __init__(self, parent: int) -> None:
        self.seen: dict[int, str] = {}
        self._parent = parent
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> set[int]:
        """Those that there are."""
        return children_of(self._parent)

    def left(self) -> list[int]:
        """Those of all that were seen that still run."""
        return [pid for pid, started in self.seen.items() if start_time(pid) == started]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            for pid in self.now() - self.seen.keys():
                # It may have ended since it was listed.
                if (started := start_time(pid)) is not None:
                    self.seen[pid] = started
