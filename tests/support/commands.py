"""Runs commands as users type them, with this Python's programs first and none of this process's settings."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.gateway import is_setting

# Loading two models takes seconds; a busy machine takes longer.
LIMIT_S = 100.0


def run(command: Sequence[str | Path], directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; settings are environment names."""
    environment = {name: value for name, value in os.environ.items() if not is_setting(name)}
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


def succeed(command: Sequence[str | Path], directory: Path, **settings: str) -> str:
    """What a command prints; it has to succeed."""
    done = run(command, directory, **settings)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
