"""Runs commands as users type them, with this Python's programs first and none of this process's settings."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from corral.cli import main
from support.gateway import is_setting

# Loading two models takes seconds; a busy machine takes longer.
LIMIT_S = 100.0


def run(command: Sequence[str | Path], directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; settings are environment names."""
    environment = without_settings()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=directory,
        env={**environment, "PATH": path, **settings},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def corral(arguments: Sequence[str], directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """As ``run``, a command of Corral's; in this process, which takes a tenth of the time. What it raises is raised."""
    code, out, err = 0, StringIO(), StringIO()
    with (
        chdir(directory),
        patch.dict(os.environ, without_settings() | settings, clear=True),
        patch.object(sys, "argv", ["corral", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not is_setting(name)}


def succeed(command: Sequence[str | Path], directory: Path, **settings: str) -> str:
    """What a command prints; it has to succeed."""
    done = run(command, directory, **settings)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
