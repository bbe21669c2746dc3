"""Keeps what a child prints: the last lines in memory, all of it in a file of limited size."""

import queue
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

TAIL_LINES = 50
LINE_BYTES = 2000
# Chunks that wait for a slow disk; what comes on top is lost, so that nothing else waits.
BACKLOG_CHUNKS = 256
# A disk that takes longer for the last lines must not hold up the end.
CLOSE_S = 2.0


class LogFile:
    """Takes a child's output, for one start after the other.

    Writers: the event loop writes the tail; the file, if there is one, is
    written by a thread, because a disk may block.
    """

    def __init__(self, path: Path | None = None, limit_bytes: int = 10 * 2**20) -> None:
        self.path = path
        # All that was ever written: who sees it grow knows that the child is alive.
        self.written_bytes = 0
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._partial = b""
        self._writer = _Writer(path, limit_bytes) if path is not None else None

    def begin(self, line: str) -> None:
        """A new start: the tail holds nothing of the one before, the file goes on."""
        self._lines.clear()
        self._partial = b""
        self.write(f"{line}\n".encode())

    def write(self, chunk: bytes) -> None:
        """Take output as it comes, not only whole lines; does not block."""
        self.written_bytes += len(chunk)
        *whole, self._partial = (self._partial + chunk).split(b"\n")
        self._lines.extend(line[:LINE_BYTES] for line in whole)
        # A line without an end must not grow for ever.
        self._partial = self._partial[:LINE_BYTES]
        if self._writer is not None:
            self._writer.put(chunk)

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines, oldest first, without line ends and without empty ones."""
        found = [line.decode(errors="replace").rstrip() for line in (*self._lines, self._partial)]
        return [line for line in found if line][-lines:]

    def close(self) -> None:
        """Write what is left; waits for the disk, but not for long."""
        if self._writer is not None:
            self._writer.close()


def log_path(directory: Path, name: str) -> Path:
    """The log file of a model; two names never share one, whatever characters they hold."""
    return directory / f"{quote(name, safe='@+:')}.log"


class _Writer:
    """A thread that writes FILE and, when it is full, makes it FILE.1."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._chunks: queue.Queue[bytes | None] = queue.Queue(BACKLOG_CHUNKS)
        self._thread = threading.Thread(target=self._run, name=f"corral-log {path.name}", daemon=True)
        self._thread.start()

    def put(self, chunk: bytes) -> None:
        with suppress(queue.Full):
            self._chunks.put_nowait(chunk)

    def close(self) -> None:
        try:
            self._chunks.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            self._write_all()
        except OSError:
            # The disk is full, or the directory is gone: the child must not suffer for its log.
            while self._chunks.get() is not None:
                pass

    def _write_all(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._open()
        try:
            while (chunk := self._chunks.get()) is not None:
                if file.tell() + len(chunk) > self._limit_bytes:
                    file.close()
                    self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                    file = self._open()
                file.write(chunk)
        finally:
            file.close()

    def _open(self) -> BinaryIO:
        # Unbuffered: who looks into the file sees what the child has said.
        return self._path.open("ab", buffering=0)
