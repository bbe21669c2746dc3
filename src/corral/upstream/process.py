"""Starts processes and sees them end: the one place that spawns."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from corral.upstream.logfile import LogFile

LEASH = (sys.executable, "-P", "-m", "corral.upstream.leash")

READ_BYTES = 64 * 1024
# What a pipe can hold when the child has ended is far less; an orphan that goes on writing is not read for ever.
LAST_READS = 64
# KILL ends a process at once, but for one that the kernel holds in a system call.
KILL_S = 5.0


class Process:
    """A child in a group and session of its own, that dies with this process.

    One writer: the event loop. It learns of the end from a thread that waits
    for the child alone, because a pipe stays open while any grandchild holds
    it. Whatever is left of the group when the child has ended is killed.
    """

    def __init__(self, popen: subprocess.Popen[bytes], output: int, log: LogFile) -> None:
        self._popen = popen
        self._output = output
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(output, self._read)
        threading.Thread(target=self._watch, name=f"corral-wait {popen.pid}", daemon=True).start()

    @classmethod
    def spawn(cls, argv: Sequence[str], env: Mapping[str, str], log: LogFile) -> "Process":
        """Start ``argv``; stdout and stderr go to ``log``.

        Call it in the thread that runs the loop, for Linux ties the child to
        the thread that started it. A command that cannot be run ends with
        status 126 or 127 and says why in its log.
        """
        output, childs_output = os.pipe()
        os.set_blocking(output, False)
        try:
            popen = subprocess.Popen(  # noqa: S603  (the command line is made by Corral, no shell)
                [*LEASH, str(os.getpid()), "--", *argv],
                env=env,
                # Where the kernel cannot tie a child to its parent, the leash waits for this pipe to end.
                stdin=subprocess.DEVNULL if sys.platform == "linux" else subprocess.PIPE,
                stdout=childs_output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(childs_output)
        try:
            return cls(popen, output, log)
        except BaseException:
            _signal_group(popen.pid, signal.SIGKILL)
            popen.wait()
            os.close(output)
            raise

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; the exit status, or minus the number of the signal that ended it."""
        return self._popen.returncode

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done, with the return code, once the child has ended and its output was read. May be cancelled."""
        return asyncio.shield(self._end)

    async def stop(self, grace_s: float) -> int:
        """TERM to the group, and KILL to what is left of it after the grace."""
        try:
            self._signal(signal.SIGTERM)
            await asyncio.wait({self._end}, timeout=grace_s)
        finally:
            self.kill()
        # A child that even KILL does not end hangs in the kernel: nothing waits for that.
        await asyncio.wait({self._end}, timeout=KILL_S)
        return self._end.result() if self._end.done() else -signal.SIGKILL

    def kill(self) -> None:
        """KILL to the whole group, at once; harmless when it has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Until the child is reaped, which only this thread does, its number belongs to nobody else.
        if self._popen.returncode is None:
            _signal_group(self._popen.pid, number)

    def _watch(self) -> None:
        _wait_without_reaping(self._popen.pid)
        try:
            self._loop.call_soon_threadsafe(self._reap)
        except RuntimeError:
            # The loop is closed: this process is ending too.
            _signal_group(self._popen.pid, signal.SIGKILL)

    def _reap(self) -> None:
        _signal_group(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        for _ in range(LAST_READS):
            if not self._read():
                break
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self._end.set_result(code)

    def _read(self) -> bool:
        """Take what the child has written; False when there is nothing (more)."""
        try:
            chunk = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            # Nobody can write any more; without this the loop would call again and again.
            self._loop.remove_reader(self._output)
            return False
        self._log.write(chunk)
        return True


def spawn_detached(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one; its stdout is a pipe to here, its stderr goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        return subprocess.Popen(  # noqa: S603  (the command line is made by Corral, no shell)
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )


def become(argv: list[str], env: Mapping[str, str]) -> None:
    """Run a command in place of this process; raises OSError when it cannot be run."""
    os.execvpe(argv[0], argv, env)  # noqa: S606  (no shell is wanted)


def start_time(pid: int) -> str | None:
    """When a process started, in the system's own words; None when there is none (any more).

    With its pid it names a process for good: the same pid with another start
    time is a stranger.
    """
    if sys.platform == "linux":
        return _start_time_in_proc(pid)
    told = subprocess.run(  # noqa: S603  (a fixed command)
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None


def resident_bytes(pid: int) -> int | None:
    """The memory that a process holds now; None when it has ended, or where only ``ps`` could tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return None
    # One that has just been killed holds nothing before anybody is told of its end.
    return pages * os.sysconf("SC_PAGE_SIZE") or None


def computed_s(pid: int) -> int | None:
    """The processor time that a process has used, in whole seconds; None as for ``resident_bytes``."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): behind the name utime is field 14 and stime 15, and the state, the first behind it, is 3.
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) // os.sysconf("SC_CLK_TCK")


def _start_time_in_proc(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): the name, in parentheses, may hold anything; behind it come the state (3) and the start time (22).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _signal_group(pid: int, number: signal.Signals) -> None:
    # Nobody may be left; macOS says EPERM when only the ended leader is.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _wait_without_reaping(pid: int) -> None:
    """Return when the child has ended; it stays a zombie, and so its pid stays its own."""
    if sys.platform == "linux":
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    else:
        queue = select.kqueue()
        ended = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
        # There is no such process when it has ended already.
        with closing(queue), suppress(ProcessLookupError):
            queue.control([ended], 1, None)
