"""The files of the journal: whose they are is said by a lock, which goes with the process that holds it."""

import fcntl
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from corral.store.line import head_line

# The run of a Corral that writes them, and their order in it.
NAME = re.compile(r"([0-9a-f]{16,64})-(\d{6,})\.journal")


@dataclass(frozen=True, slots=True)
class JournalFile:
    """An open file of the journal that is locked by this process; the lock lasts until ``close``."""

    path: Path
    run: str
    number: int
    descriptor: int

    @classmethod
    def create(cls, directory: Path, run: str, number: int) -> Self:
        """A new one, with its first line; raises OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{run}-{number:06d}.journal"
        # Under a name that nobody looks for until it is locked.
        draft = path.with_suffix(".new")
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
        descriptor = os.open(draft, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            line = head_line(run, number)
            if os.write(descriptor, line) != len(line):
                raise OSError("the disk is full")
            draft.rename(path)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                draft.unlink()
            raise
        return cls(path, run, number, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """One whose owner has died; None where that lives, or another has adopted it."""
        name = NAME.fullmatch(path.name)
        if name is None:
            return None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it until now may have deleted it since it was opened.
            if os.fstat(descriptor).st_nlink:
                return cls(path, name[1], int(name[2]), descriptor)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    @property
    def found(self) -> bool:
        """It is where its name says: nobody has moved or deleted it."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    @property
    def readable(self) -> Path:
        """Where another process can read it; what is not found any more as long as this one lives (Linux)."""
        return self.path if self.found else Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.close(self.descriptor)

    def delete(self) -> None:
        """What is in it is in the store."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self.close()


def dead_runs(directory: Path, but: Iterable[str]) -> list[list[JournalFile]]:
    """The files of each run whose Corral has died, in their order, now this process's; not those of ``but``.

    Only who gets the first file of a run takes the others: they have to be read one after the other.
    """
    runs: dict[str, list[Path]] = {}
    for path in sorted(directory.glob("*.journal")):
        name = NAME.fullmatch(path.name)
        if name is not None and name[1] not in but:
            runs.setdefault(name[1], []).append(path)
    return [files for paths in runs.values() if (files := _adopted(paths))]


def _adopted(paths: list[Path]) -> list[JournalFile]:
    files: list[JournalFile] = []
    for path in paths:
        file = JournalFile.adopt(path)
        if file is None:
            break
        files.append(file)
    if len(files) == len(paths):
        return files
    for file in files:
        file.close()
    return []
