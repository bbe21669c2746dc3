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
        self._gateway.until(self._no_files, f"down to {self._files} files, and one connection to each replica")
        self._gateway.until(lambda: self._tasks_now() <= self._tasks, f"down to {self._tasks} tasks")

    def _no_files(self) -> bool:
        files = open_files(self._gateway.process.pid)
        if len(files) <= self._files:
            # The system takes its time to list all sockets.
            return True
        to_replicas = self._to_replicas(files)
        return len(files) - sum(to_replicas.values()) <= self._files and max(to_replicas.values(), default=0) <= 1

    def _tasks_now(self) -> float:
        return self._gateway.metric("corral_event_loop_tasks")

    def _files_now(self) -> int:
        """Its open files, but for the connections to the replicas, which come and go."""
        files = open_files(self._gateway.process.pid)
        return len(files) - sum(self._to_replicas(files).values())

    def _to_replicas(self, files: list[str]) -> Counter[int]:
        """How many of these files are connections to each of their ports."""
        ports = remote_ports()
        ends = (ports.get(file.removeprefix("socket:[").removesuffix("]")) for file in files)
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
