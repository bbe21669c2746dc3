"""What a gateway has open when nobody is served, and whether more than that is left after a test."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from support.fake import FakeLlama
from support.gateway import Gateway

# How many looks it takes to meet a gateway between two of its questions to the replicas.
LOOKS = 5
REMOTE_ADDRESS, INODE = 2, 9


class Leftovers:
    """The files and tasks of an idle gateway, taken when it is made. Linux only."""

    def __init__(self, gateway: Gateway, fakes: Sequence[FakeLlama]) -> None:
        self._gateway = gateway
        self._ports = [fake.port for fake in fakes]
        self._tasks = min(self._tasks_now() for _ in range(LOOKS))
        self._files = min(self._files_now() for _ in range(LOOKS))

    def ensure_none(self) -> None:
        """Nothing is open that was not; a replica has one connection at most, over which it is asked how it is.

        Those that the gateway keeps for further requests have to be closed before.
        """
        gateway = self._gateway
        gateway.until(lambda: self._files_now() <= self._files, f"down to {self._files} files")
        gateway.until(lambda: max(self._to_replicas().values(), default=0) <= 1, "without connections to replicas")
        gateway.until(lambda: self._tasks_now() <= self._tasks, f"down to {self._tasks} tasks")

    def _tasks_now(self) -> float:
        return self._gateway.metric("corral_event_loop_tasks")

    def _files_now(self) -> int:
        """Its open files, but for the connections to the replicas, which come and go."""
        files = open_files(self._gateway.process.pid)
        return len(files) - sum(self._to_replicas(files).values())

    def _to_replicas(self, files: list[str] | None = None) -> Counter[int]:
        """How many connections it has to each of their ports."""
        ports = remote_ports()
        opened = open_files(self._gateway.process.pid) if files is None else files
        ends = (ports.get(file.removeprefix("socket:[").removesuffix("]")) for file in opened)
        return Counter(port for port in ends if port in self._ports)


def open_files(pid: int) -> list[str]:
    """What the file descriptors of a process stand for."""
    files = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # One may have been closed since it was listed.
        with suppress(FileNotFoundError):
            files.append(os.readlink(descriptor))
    return files


def remote_ports() -> dict[str, int]:
    """The port at the other end of each TCP socket, by its inode."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[INODE]: int(row[REMOTE_ADDRESS].partition(":")[2], 16) for row in rows}
