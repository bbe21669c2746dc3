"""Child processes for tests: scripts to start, whether they still run, and waiting for what they do."""

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from corral.upstream.process import start_time
from support.fake import PROGRAM

# How long a condition may take to come true on a slow machine.
PATIENCE_S = 20.0
TICK_S = 0.01


async def eventually(claim: Callable[[], bool], what: str = "it") -> None:
    """Wait until a claim is true; fails when it never is."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not claim():  # noqa: ASYNC110  (processes set no events)
                await asyncio.sleep(TICK_S)
    except TimeoutError:
        raise AssertionError(f"{what} is still not so") from None


def alive(pid: int) -> bool:
    return start_time(pid) is not None


def python(program: str) -> list[str]:
    """The command line of a small program."""
    return [sys.executable, "-c", program]


def fake_engine(directory: Path, *flags: str) -> Path:
    """An executable that is a fake llama-server with these flags, to be given as LLAMA_SERVER_BIN."""
    executable = directory / "fake-llama-server"
    command = shlex.join([sys.executable, str(PROGRAM)])
    executable.write_text(f'#!/bin/sh\nexec {command} "$@" {shlex.join(flags)}\n')
    executable.chmod(0o755)
    return executable
