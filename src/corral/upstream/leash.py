"""Runs a command that dies with its parent: ``python -m corral.upstream.leash PARENT_PID -- COMMAND…``.

Linux kills it when the parent ends (``PR_SET_PDEATHSIG``), whatever ends the
parent. Elsewhere a small process stays in between, whose standard input is a
pipe that only the parent holds open: at its end the whole group is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

# linux/prctl.h
PR_SET_PDEATHSIG = 1

# As shells say it: not found, found but not executable.
NOT_FOUND, NOT_EXECUTABLE = 127, 126
USAGE = 2


def main(arguments: Sequence[str]) -> int:
    """Become the command, or hold it; the command's exit status."""
    match arguments:
        case [parent, "--", *command] if parent.isdecimal() and command:
            hold = become if sys.platform == "linux" else hold_by_pipe
            return hold(int(parent), command)
    sys.stderr.write("usage: python -m corral.upstream.leash PARENT_PID -- COMMAND [ARGUMENT…]\n")
    return USAGE


def become(parent: int, command: list[str]) -> int:
    """Have the kernel kill this process when its parent ends, and run the command in its place."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        return _say(f"prctl: {os.strerror(ctypes.get_errno())}", NOT_EXECUTABLE)
    # The parent may have ended before the line above: then nothing will kill us.
    if os.getppid() != parent:
        return 128 + signal.SIGKILL
    try:
        os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)
    except OSError as error:
        return _not_started(command, error)


def hold_by_pipe(_parent: int, command: list[str]) -> int:
    """Run the command as a child; when standard input ends, kill everything in this process group.

    Which parent it is does not matter: had it ended before, the pipe would be at its end.
    """
    # TERM and INT go to the whole group: the command decides, this process waits for it.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _leave_to_the_command)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603  (Corral made the command)
    except OSError as error:
        return _not_started(command, error)
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _leave_to_the_command(*_: object) -> None:
    # A handler, not SIG_IGN: the command would inherit that.
    pass


def _kill_group_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _not_started(command: list[str], error: OSError) -> int:
    status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    return _say(f"cannot run {command[0]}: {error.strerror}", status)


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"{message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
