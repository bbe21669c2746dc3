"""What one Corral may take of a llama-server that other Corrals use too.

Each states how many slots its calls hold, and asks before it gives one to
another call. Who keeps the book answers how many of the calls it asked for may
start, and keeps a place in line for the first that may not. Here is what one
Corral knows and believes in between; the rule of the book is
``upstream/shared/slots.lua``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """Whether the book can be read."""

    # It is asked before a slot is taken.
    THERE = "there"
    # It may have forgotten all: everybody states what they hold, and nobody asks for more yet.
    STATING = "stating"
    # It cannot be reached.
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a Corral tells of one replica: absolute figures, so that to tell it twice changes nothing."""

    # The replica's slots, as far as this Corral knows.
    slots: int
    # Those that its calls hold; they are stated, not asked for.
    keep: int
    # The tasks of the calls that are to start, in their order.
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the book says to it."""

    # So many of the calls may start, the first ones.
    granted: int
    # The slots that others hold; and those that are kept for others who have asked before.
    others: int
    ahead: int
    # Where in the order of all changes this stands.
    version: int
    # When the first of what others hold ends, if they do not state it anew.
    expires_s: float | None = None


class Holding:
    """What is known of one shared replica. Two writers: its keeper tells what the book says, the pool takes and wants.

    ``spare`` slots have been granted and are not taken yet: they are for the
    calls they were asked for, and what remains of them is given back at once.
    A slot whose call has ended is asked for anew, so that others get their turn.
    """

    def __init__(self, corrals: int | None) -> None:
        """``corrals``: by so many the slots are divided while the book is away; None: no more are taken then."""
        self._corrals = corrals
        # It is not known yet which book it is.
        self.stage = Stage.STATING
        self.spare = 0
        # As last told: held by others, and kept for them.
        self.elsewhere = 0
        self._ahead = 0
        # Asked for in this pass of the queue, by those who go first; written by the pool.
        self.promised = 0
        self.wanted: tuple[int, ...] = ()
        # Told when the book has to be told something.
        self.on_stale: Callable[[], None] = _nothing
        self._slots = 0
        # What the book knows of us: slots, and calls that wait in vain. None: nobody knows.
        self._held: int | None = None
        self._outstanding: tuple[int, ...] | None = None
        self._asking = False
        self._version = 0
        self._total = 0

    # What the pool goes by.

    def usable(self, slots: int) -> int:
        """Of so many slots, those that one call can have at most, as things stand."""
        if self.stage is not Stage.AWAY:
            return slots
        return slots // self._corrals if self._corrals else 0

    def free(self, slots: int, busy: int) -> int:
        """Of so many slots, those that can be had beside ours, as far as one knows."""
        if self.stage is Stage.THERE:
            # What has been granted is ours, whoever else stands in line.
            return max(self.spare, slots - self.elsewhere - self._ahead - busy - self.promised)
        return max(0, self.usable(slots) - busy) if self.stage is Stage.AWAY else 0

    def lets(self, tasks: int) -> bool:
        """So many of the slots that are left may be taken without asking."""
        return self.stage is not Stage.THERE or self.spare >= tasks

    def take(self, tasks: int) -> None:
        """A call starts."""
        self.spare = max(0, self.spare - tasks)

    def want(self, tasks: tuple[int, ...], busy: int) -> None:
        """These are the calls that are to start there, as far as there is room, and the next one."""
        self.wanted = tasks
        self.look(busy)

    def look(self, busy: int) -> None:
        """See whether the book is right while ``busy`` slots are held."""
        wants = self.stage is Stage.THERE and self.wanted != self._outstanding
        if not self._asking and self.stage is not Stage.AWAY and (busy != self._held or wants):
            self.on_stale()

    # What the keeper tells.

    @property
    def waits(self) -> bool:
        """Calls of ours stand in line there."""
        return bool(self.wanted) and self.stage is Stage.THERE

    def ask(self, busy: int, slots: int) -> Ask:
        """What to tell the book now. No slot is taken until it is answered: what was spare is given back by it."""
        self.spare = 0
        self._slots = slots
        self._asking = True
        return Ask(slots, busy, self.wanted if self.stage is Stage.THERE else ())

    def answered(self, ask: Ask, answer: Answer) -> None:
        """The book has taken it down."""
        self._asking = False
        self.spare = sum(ask.tasks[: answer.granted]) if self.stage is Stage.THERE else 0
        self._held = ask.keep + sum(ask.tasks[: answer.granted])
        self._outstanding = ask.tasks[answer.granted :]
        self.elsewhere, self._ahead = answer.others, answer.ahead
        if self._version > answer.version:
            # A message of something that happened later has come before it.
            self._believe()
        # Messages come in their order: those that do now are newer than the one that has just been gone by.
        self._version = answer.version

    def unanswered(self) -> None:
        """Whether the book has taken it down is not known."""
        self._asking = False
        self.spare = 0
        self._held = self._outstanding = None

    def told(self, total: int, version: int) -> bool:
        """So many slots were held by all, at that point; whether that is news."""
        if version <= self._version:
            return False
        self._total, self._version = total, version
        if self._asking or self._held is None:
            # The answer that comes says what is ours of it.
            return False
        self._believe()
        return True

    def lose(self) -> None:
        """The book cannot be reached; what it has granted may be given to others before it is back."""
        self.unanswered()
        self.stage = Stage.AWAY
        self.elsewhere = self._ahead = 0

    def state(self) -> None:
        """The book may be another one, and empty."""
        self.unanswered()
        self._version = 0
        self.stage = Stage.STATING
        self.on_stale()

    def resume(self) -> None:
        """Everybody has had the time to state what they hold."""
        self._outstanding = None
        self.stage = Stage.THERE
        self.on_stale()

    def _believe(self) -> None:
        """Go by a message: there may be room, and who has asked before may have been served."""
        self.elsewhere = max(0, self._total - (self._held or 0))
        self._ahead = 0
        if self._outstanding and self._slots - self._total >= self._outstanding[0]:
            # Worth asking again.
            self._outstanding = None


def _nothing() -> None:
    pass
