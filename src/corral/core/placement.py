"""What has to stop so that a model may start, or why it cannot start."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Hold(Enum):
    """Why a model that is loaded is not to be stopped now."""

    # Someone is served by it, or waits for it.
    BUSY = "busy"
    # Its processes start.
    LOADING = "loading"
    # It was loaded for someone who has not come back yet.
    REQUESTED = "requested"
    # The operator wants it to stay; this hold never ends by itself.
    PINNED = "pinned"
    # It is being stopped already; its memory comes free.
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that takes memory now; ``used_at`` is when it was last used, on any clock."""

    name: str
    bytes: int
    used_at: float
    hold: Hold | None = None
    # Of the models of a group one is loaded at a time.
    group: str | None = None
    # It is loaded alone.
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be loaded, and the memory that it will take."""

    name: str
    bytes: int
    group: str | None = None
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Nothing is in the way."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop these, in this order; when they are gone it can start. All of them are idle, and all of them are needed."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """It could start if these were gone, of which at least one is held; those first that were used longest ago."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Never:
    """It can never start beside ``pinned``, which keep ``pinned_bytes`` of the budget; or it alone is too large."""

    pinned: tuple[str, ...]
    pinned_bytes: int
    # Not for the memory: a pinned model may not be loaded together with it.
    apart: bool = False


Decision = Start | Stop | Wait | Never


def place(wanted: Wanted, residents: Iterable[Resident], budget: int | None) -> Decision:
    """Decide what ``wanted``, which is not among the residents, has to wait for; a budget of None is no limit."""
    there = sorted(residents, key=lambda each: (each.used_at, each.name))
    if (never := _never(wanted, there, budget)) is not None:
        return never
    apart = [each for each in there if must_be_apart(wanted, each)]
    excess = wanted.bytes + sum(each.bytes for each in there) - budget if budget is not None else 0

    def enough(gone: Sequence[Resident]) -> bool:
        return sum(each.bytes for each in gone) >= excess

    others = [each for each in there if each not in apart]
    going = [each for each in others if each.hold is Hold.LEAVING]
    idle = [each for each in others if each.hold is None]
    if all(each.hold in (None, Hold.LEAVING) for each in apart):
        chosen = _choose(apart, [*going, *idle], enough)
        if chosen is not None:
            return _go(chosen)
    held = [each for each in others if each.hold not in (None, Hold.LEAVING, Hold.PINNED)]
    in_the_way = _choose(apart, [*going, *idle, *held], enough) or apart
    return Wait(tuple(each.name for each in in_the_way if each.hold is not Hold.LEAVING))


def surplus(residents: Iterable[Resident], budget: int | None) -> tuple[str, ...]:
    """What to stop because the models have grown beyond the budget: idle ones, those first that were used long ago."""
    there = sorted(residents, key=lambda each: (each.used_at, each.name))
    excess = sum(each.bytes for each in there) - budget if budget is not None else 0
    going = [each for each in there if each.hold is Hold.LEAVING]
    idle = [each for each in there if each.hold is None]

    def enough(gone: Sequence[Resident]) -> bool:
        return sum(each.bytes for each in gone) >= excess

    chosen = _choose([], [*going, *idle], enough)
    return tuple(each.name for each in (idle if chosen is None else chosen) if each.hold is None)


def must_be_apart(wanted: Wanted, other: Resident) -> bool:
    """Whether the two may not be loaded together, however much memory there is."""
    same_group = wanted.group is not None and wanted.group == other.group
    return wanted.exclusive or other.exclusive or same_group


def _never(wanted: Wanted, there: Sequence[Resident], budget: int | None) -> Never | None:
    pinned = [each for each in there if each.hold is Hold.PINNED]
    if apart := [each for each in pinned if must_be_apart(wanted, each)]:
        return Never(tuple(each.name for each in apart), sum(each.bytes for each in apart), apart=True)
    pinned_bytes = sum(each.bytes for each in pinned)
    if budget is not None and wanted.bytes + pinned_bytes > budget:
        return Never(tuple(each.name for each in pinned), pinned_bytes)
    return None


def _choose(
    must: Sequence[Resident], others: Sequence[Resident], enough: Callable[[Sequence[Resident]], bool]
) -> list[Resident] | None:
    """``must`` and as few of the first of ``others`` as are enough; None when all of them are not."""
    taken: list[Resident] = []
    for each in others:
        if enough([*must, *taken]):
            break
        taken.append(each)
    if not enough([*must, *taken]):
        return None
    # A large one may have made small ones before it needless; the last used stays before all.
    for each in reversed(taken):
        without = [other for other in taken if other is not each]
        if enough([*must, *without]):
            taken = without
    return [*must, *taken]


def _go(chosen: Sequence[Resident]) -> Decision:
    """Start when nothing needs to go; while what leaves is enough, wait for it."""
    if not chosen:
        return Start()
    stop = tuple(each.name for each in chosen if each.hold is None)
    return Stop(stop) if stop else Wait(())
