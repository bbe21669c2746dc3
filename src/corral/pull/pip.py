"""Runs pip to download wheels, so that the user's index, mirror, proxy and certificates are honoured."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from corral.core.errors import PullError

# How often the bar looks at the size of what pip has downloaded.
TICK_S = 0.1

# What pip says when no index answered; one that answers has other versions at least.
NOTHING_FOUND = "(from versions: none)"


def download(requirements: Sequence[str], into: Path, *, on_bytes: Callable[[int], None]) -> None:
    """Download exactly these wheels, without what they depend on; ``on_bytes`` is told how much is there so far.

    Raises PullError with pip's own words. When interrupted, pip is ended first.
    """
    scratch = into / "pip-scratch"
    scratch.mkdir()
    command = [
        *find_pip(scratch),
        *("download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)),
        *("--quiet", "--no-input", "--progress-bar", "off", "--disable-pip-version-check"),
        *requirements,
    ]
    said = scratch / "said"
    with said.open("wb") as stderr:
        code = _run(command, scratch, stderr.fileno(), on_bytes)
    if code != 0:
        raise PullError(_explain(requirements, said.read_text(errors="replace")))


def find_pip(scratch: Path) -> list[str]:
    """The command line of this interpreter's pip, or of one unpacked into ``scratch`` where it has none.

    Environments made by uv have no pip; Python itself brings one along.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    return unpack_pip(scratch)


def unpack_pip(scratch: Path) -> list[str]:
    """The command line of the pip that ensurepip unpacks into ``scratch``."""
    command = [sys.executable, "-m", "ensurepip", "--root", str(scratch)]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    mains = list(scratch.rglob("pip/__main__.py"))
    if done.returncode != 0 or not mains:
        raise PullError("this Python environment has neither pip nor ensurepip; install pip into it and try again")
    return [sys.executable, str(mains[0].parent)]


def _run(command: list[str], scratch: Path, stderr: int, on_bytes: Callable[[int], None]) -> int:
    # pip downloads into TMPDIR: there its progress can be seen, and nothing is left behind.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr) as process:  # noqa: S603
        try:
            while process.poll() is None:
                on_bytes(_downloaded_bytes(scratch))
                _wait_a_tick(process)
        except BaseException:
            process.kill()
            raise
    return process.returncode


def _wait_a_tick(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(TICK_S)
    except subprocess.TimeoutExpired:
        return


def _downloaded_bytes(scratch: Path) -> int:
    total = 0
    for path in scratch.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _explain(requirements: Sequence[str], said: str) -> str:
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.splitlines()[-3:]
    offline = "no package index has it or can be reached: is this machine offline? " if NOTHING_FOUND in said else ""
    return "\n".join([f"cannot download {' '.join(requirements)}; {offline}pip says:", *errors])
