"""Starts what is measured on its core, waits until it serves, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY = "sk-bench-0123456789abcdef"
MODEL = "llama"
START_LIMIT_S = 120.0
STOP_LIMIT_S = 5.0
LOOK_S = 0.005
SETTINGS = ("CORRAL_", "LLAMA_", "MODEL_", "OPENAI_", "OPERATOR_", "ENABLED_")
CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}).encode()


class NotStarted(Exception):
    """A program does not serve; the text says what it said."""


@dataclass(frozen=True, slots=True)
class Running:
    """A program that serves: its process, its port, and the time it took until its first answer."""

    pid: int
    port: int
    start_s: float


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(
    argv: Sequence[str],
    port: int,
    *,
    cores: Sequence[int],
    directory: Path,
    env: Mapping[str, str] | None = None,
    ready: "Callable[[int], bool] | None" = None,
) -> Iterator[Running]:
    """The program, from its first answer until the block is left; its output goes to files in ``directory``."""
    taskset = ["taskset", "--cpu-list", ",".join(map(str, cores))]
    begun = time.monotonic()
    with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
        # A session of its own: everything that it starts can be ended with it.
        process = subprocess.Popen(
            [*taskset, *argv],
            stdout=out,
            stderr=err,
            # Where no .env and no corral.yaml of the developer's is.
            cwd=directory,
            env={**_clean_environment(), **(env or {})},
            start_new_session=True,
        )
    try:
        _wait(process, port, ready or chats, directory)
        yield Running(process.pid, port, time.monotonic() - begun)
    finally:
        _end(process)


def _clean_environment() -> dict[str, str]:
    """The environment without the settings of whoever measures."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}


def _wait(process: "subprocess.Popen[bytes]", port: int, ready: Callable[[int], bool], directory: Path) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        if ready(port):
            return
        time.sleep(LOOK_S)
    said = (directory / "stderr").read_text(errors="replace") + (directory / "stdout").read_text(errors="replace")
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")
    what = "does not answer" if process.poll() is None else f"ended with {process.returncode}"
    raise NotStarted(f"{what}; it said: {last.strip()[:300]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """TERM to the session, then KILL to what is left of it."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def chats(port: int) -> bool:
    """Whether a chat completion is answered: the first moment at which a client is served."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", CHAT, headers)
    try:
        with urllib.request.urlopen(request, timeout=START_LIMIT_S) as reply:
            return bool(json.load(reply)["choices"])
    except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError, KeyError):
        return False
