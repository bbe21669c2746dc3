"""Children: what they say, how they end, and that none is left. All on real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.upstream.leash import NOT_EXECUTABLE, NOT_FOUND, USAGE
from corral.upstream.logfile import LogFile
from corral.upstream.process import Process, resident_bytes, start_time
from support.children import alive, eventually, python
from support.loops import on_both_loops

LONG_S = 600

# Prints its own pid and that of a child that goes on for long; ``{session}`` puts that into a session of its own.
WITH_A_CHILD = f"""
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep({LONG_S})"], start_new_session={{session}})
print(os.getpid(), child.pid, "up", flush=True)
"""
WAITS = f"\nimport time; time.sleep({LONG_S})\n"
IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@asynccontextmanager
async def running(program: str) -> AsyncIterator[tuple[Process, LogFile]]:
    log = LogFile()
    process = Process.spawn(python(program), os.environ, log)
    try:
        yield process, log
    finally:
        await process.stop(0)


async def pids(log: LogFile) -> tuple[int, int]:
    """What ``WITH_A_CHILD`` has printed."""
    await eventually(lambda: " ".join(log.tail()).endswith("up"), "the child's first line")
    first, second, _ = log.tail()[0].split()
    return int(first), int(second)


@on_both_loops
async def test_both_outputs_and_the_exit_status_are_told() -> None:
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"

    async with running(program) as (process, log):
        assert await process.exited == 3

        assert sorted(log.tail()) == ["err", "out"]
        assert process.returncode == 3


@on_both_loops
async def test_the_last_words_are_there_when_the_end_is_told() -> None:
    program = "print('x' * 60 * 1000); print('last', flush=True); import os; os._exit(0)"

    async with running(program) as (process, log):
        await process.exited

        assert log.tail()[-1] == "last"


@on_both_loops
async def test_a_signal_that_ended_it_is_a_negative_status() -> None:
    async with running("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") as (process, _):
        assert await process.exited == -signal.SIGSEGV


@on_both_loops
async def test_its_end_is_noticed_while_a_grandchild_elsewhere_holds_the_pipe() -> None:
    async with running(WITH_A_CHILD.format(session=True)) as (process, log):
        assert await process.exited == 0

        _, grandchild = await pids(log)
        assert alive(grandchild)
        os.kill(grandchild, signal.SIGKILL)


@on_both_loops
async def test_what_it_leaves_of_its_group_is_killed() -> None:
    async with running(WITH_A_CHILD.format(session=False)) as (process, log):
        assert await process.exited == 0

        _, grandchild = await pids(log)
        await eventually(lambda: not alive(grandchild), "the grandchild's end")


@on_both_loops
async def test_stop_lets_it_end_by_itself() -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True)" + WAITS
    )

    async with running(program) as (process, log):
        await eventually(lambda: log.tail() == ["up"])

        assert await process.stop(grace_s=LONG_S) == 7


@on_both_loops
async def test_stop_kills_what_does_not_listen_with_its_whole_group() -> None:
    async with running(IGNORES_TERM + WITH_A_CHILD.format(session=False) + WAITS) as (process, log):
        _, grandchild = await pids(log)

        assert await process.stop(grace_s=0.1) == -signal.SIGKILL
        await eventually(lambda: not alive(grandchild), "the grandchild's end")


@on_both_loops
async def test_a_stop_that_is_cancelled_kills_at_once() -> None:
    async with running(IGNORES_TERM + "print('up', flush=True)" + WAITS) as (process, log):
        await eventually(lambda: log.tail() == ["up"])
        stopping = asyncio.ensure_future(process.stop(grace_s=LONG_S))
        await asyncio.sleep(0)

        stopping.cancel()

        assert await process.exited == -signal.SIGKILL
        await asyncio.wait({stopping})


@on_both_loops
async def test_to_wait_for_the_end_can_be_given_up() -> None:
    async with running("print('up', flush=True)" + WAITS) as (process, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await process.exited

        assert await process.stop(grace_s=LONG_S) == -signal.SIGTERM


@on_both_loops
async def test_stopping_twice_is_harmless() -> None:
    async with running("pass") as (process, _):
        assert await process.exited == 0
        assert await process.stop(1) == await process.stop(1) == 0


@on_both_loops
async def test_a_program_that_cannot_be_run_says_so_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    for command, status in (("/does/not/exist", NOT_FOUND), (str(tmp_path / "text"), NOT_EXECUTABLE)):
        log = LogFile()

        process = Process.spawn([command], os.environ, log)

        assert await process.exited == status
        assert command in log.tail()[0]


PARENT = """
import asyncio, os, sys
from corral.upstream.logfile import LogFile
from corral.upstream.process import Process

async def main():
    process = Process.spawn([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, LogFile())
    print(process.pid, flush=True)
    await process.exited

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is the pipe that does it elsewhere")
@on_both_loops
async def test_kill_9_of_the_parent_takes_the_child_along() -> None:
    with subprocess.Popen(python(PARENT), stdout=subprocess.PIPE, text=True) as parent:  # noqa: ASYNC220  (the test)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)

        parent.kill()

        await eventually(lambda: not alive(child), "the child's end")


def leash(parent: int, *command: str, hold: str = "become") -> subprocess.Popen[str]:
    program = f"import sys; from corral.upstream import leash; sys.exit(leash.{hold}({parent}, {list(command)!r}))"
    return subprocess.Popen(
        python(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_nothing_is_started_when_the_parent_has_ended_before() -> None:
    # Process 1 is nobody's test.
    with leash(1, *python("print('started')")) as child:
        output, _ = child.communicate()

    assert output == ""
    assert child.returncode == 128 + signal.SIGKILL


@on_both_loops
async def test_the_end_of_the_pipe_kills_the_whole_group() -> None:
    with leash(0, *python(WITH_A_CHILD.format(session=False) + WAITS), hold="hold_by_pipe") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        group = [int(pid) for pid in child.stdout.readline().split()[:2]]
        assert all(alive(pid) for pid in group)

        child.stdin.close()

        await eventually(lambda: not any(alive(pid) for pid in group), "the end of the group")


@pytest.mark.parametrize(
    ("program", "status"),
    [("import sys; sys.exit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
    ids=["exit", "signal"],
)
def test_held_by_a_pipe_the_status_is_the_commands(program: str, status: int) -> None:
    with leash(0, *python(program), hold="hold_by_pipe") as child:
        assert child.wait() == status


def test_held_by_a_pipe_the_command_decides_about_term() -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True)" + WAITS
    )
    with leash(0, *python(program), hold="hold_by_pipe") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"

        os.killpg(child.pid, signal.SIGTERM)

        assert child.wait() == 7


@pytest.mark.parametrize("arguments", [[], ["1"], ["x", "--", "true"], ["1", "true"], ["1", "--"]])
def test_a_leash_without_parent_or_command_says_how_it_is_used(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "corral.upstream.leash", *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == USAGE
    assert "usage" in done.stderr


def test_a_start_time_tells_a_process_from_the_next_with_its_pid() -> None:
    with subprocess.Popen(python("input()"), stdin=subprocess.PIPE) as child:
        told = start_time(child.pid)
        assert told is not None
        assert told == start_time(child.pid)
        assert told != start_time(1)
        child.communicate(b"\n")

    assert start_time(child.pid) is None


def test_a_zombie_counts_as_ended() -> None:
    with subprocess.Popen(python("pass"), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()
        # The child is not waited for until the block is left.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert start_time(child.pid) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only /proc tells what a process holds")
def test_one_that_was_killed_holds_an_unknown_amount_and_not_nothing_until_its_end_is_told() -> None:
    """Its memory counts as it did, so that no other takes its place before it is started again."""
    with subprocess.Popen(python(WAITS), stdout=subprocess.DEVNULL) as child:
        assert (resident_bytes(child.pid) or 0) > 0
        child.kill()
        # It stays as a zombie as long as nobody waits for it.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert resident_bytes(child.pid) is None
