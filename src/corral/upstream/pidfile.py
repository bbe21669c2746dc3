"""Remembers, in a directory, which process keeps the launched llama-servers running."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from corral.core.errors import EngineError
from corral.upstream.process import start_time

FILE_NAME = "llama-servers.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the llama-servers: where it listens and what it writes to."""

    name: str
    url: str
    log: str


@dataclass(frozen=True, slots=True)
class Keeper:
    """The process that keeps them; ``started`` tells it from a later one with the same pid."""

    pid: int
    started: str
    # It has ended when so much time has passed since it was told to stop.
    grace_s: float
    servers: tuple[Kept, ...]

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def claim(directory: Path, grace_s: float, servers: tuple[Kept, ...]) -> Keeper:
    """Enter this process as the keeper; raises EngineError when there is one already."""
    keeper = Keeper(os.getpid(), start_time(os.getpid()) or "", grace_s, servers)
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f"{FILE_NAME}.{keeper.pid}"
    draft.write_text(json.dumps(asdict(keeper), indent=2))
    try:
        if find(directory) is None:
            release(directory)
        # Of two that get here at the same time, one finds the name taken.
        os.link(draft, directory / FILE_NAME)
    except FileExistsError:
        raise EngineError(f"llama-servers are running already; {directory / FILE_NAME} says which") from None
    finally:
        draft.unlink()
    return keeper


def find(directory: Path) -> Keeper | None:
    """The keeper, if there is one and it is alive."""
    keeper = _read(directory)
    return keeper if keeper is not None and keeper.alive else None


def release(directory: Path) -> None:
    """Forget the keeper."""
    with suppress(FileNotFoundError):
        (directory / FILE_NAME).unlink()


def _read(directory: Path) -> Keeper | None:
    try:
        read = json.loads((directory / FILE_NAME).read_text())
        servers = tuple(Kept(**server) for server in read.pop("servers"))
        return Keeper(**read, servers=servers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # There is none, or it is not ours: nothing that may be killed by it.
        return None
