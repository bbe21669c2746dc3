"""A real llama.cpp for measurements, started as Corral starts it, and clients that leave it.

    with RealEngine(EngineSpec("measured", file, parallel=2)) as engine, Bystander(engine.port, body) as bystander:
        victim = connect(engine.port, body)
        ...
        victim.close()
        gone_s = engine.seconds_until_gone(task)

Everything ends with its ``with`` block, also on Ctrl-C.
"""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from corral.upstream.argv import engine_command, llama_argv, llama_environment
from corral.upstream.spec import EngineSpec
from corral_process import Child

CHAT = "/v1/chat/completions"
HOST = "127.0.0.1"

START_LIMIT_S = 600.0
# A busy llama-server answers between two steps; with a large batch these take long.
ANSWER_LIMIT_S = 120.0
# No event that is waited for takes as long.
WAIT_LIMIT_S = 300.0
LOOK_S = 0.005

WORDS = ("horse", "gate", "barn", "hay", "field", "rider", "saddle", "river", "dust", "fence", "mare", "stable")

# Where a task runs, and which it is.
Task = tuple[int, int]


class RealEngine(Child):
    """A running llama-server."""

    def __init__(self, spec: EngineSpec, port: int = 0) -> None:
        """``port`` 0: any that is free. To be made by the main thread: it ends with the thread that has made it."""
        with socket.create_server((HOST, port)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        leash = [sys.executable, "-m", "corral.upstream.leash", str(os.getpid()), "--"]
        engine = engine_command(spec.server_bin)
        command = [*leash, *engine, *llama_argv(spec, self.port, engine)]
        super().__init__(
            subprocess.Popen(
                command,
                env=llama_environment(os.environ, None),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        wait_until(self._ready, START_LIMIT_S)

    @property
    def cpu_s(self) -> float:
        """The CPU time that it has used (Linux): less of a matter of luck on a busy machine than time is."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def post(self, path: str, body: object) -> dict[str, Any]:
        """The JSON of an answer, an error's too."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT_LIMIT_S) as reply:
                answer: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            answer = json.load(error)
        return answer

    def tasks(self) -> dict[Task, int]:
        """What is being worked on, and how many tokens each has generated."""
        with urllib.request.urlopen(f"{self.url}/slots", timeout=ANSWER_LIMIT_S) as reply:
            slots = json.load(reply)
        return {(slot["id"], slot["id_task"]): _generated(slot) for slot in slots if slot["is_processing"]}

    def new_task(self, known: set[Task], *, generates: bool) -> Task:
        """Wait for a task that is not a known one, and for its first token if it is to generate."""
        found: list[Task] = []

        def there() -> bool:
            found[:] = [
                task for task, tokens in self.tasks().items() if task not in known and bool(tokens) == generates
            ]
            return bool(found)

        wait_until(there)
        return found[0]

    def until_idle(self) -> None:
        wait_until(lambda: not self.tasks())

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"llama-server does not start; try it by hand: {self.process.args!r}")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=ANSWER_LIMIT_S):
                return True
        except OSError:
            return False


class Bystander:
    """A client that reads a stream, and is not to notice that others leave. One writer: its thread."""

    def __init__(self, port: int, body: dict[str, Any], key: str | None = None) -> None:
        self.events = 0
        self.longest_gap_s = 0.0
        self.ended = False
        self._socket = connect(port, {**body, "stream": True}, key)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_until(lambda: self.events > 1 or self.ended)

    def goes_on(self) -> bool:
        """Wait for another event; False when the stream has ended instead."""
        before = self.events
        wait_until(lambda: self.events > before or self.ended)
        return not self.ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        last = None
        with suppress(OSError):
            for line in _lines(self._socket):
                if line.startswith(b'data: {"error"') or line.startswith(b"data: [DONE]"):
                    break
                if line.startswith(b"data:"):
                    now = time.monotonic()
                    self.longest_gap_s = max(self.longest_gap_s, now - (last or now))
                    last = now
                    self.events += 1
        self.ended = True


def connect(port: int, body: dict[str, Any], key: str | None = None) -> socket.socket:
    """A connection that has sent a chat; to close it is to leave."""
    content = json.dumps(body).encode()
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: bench\r\n{authorization}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    client = socket.create_connection((HOST, port), timeout=WAIT_LIMIT_S)
    client.sendall(head.encode() + content)
    return client


def progress_of(engine: RealEngine, body: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    """When each step of reading a prompt was done, in seconds from the first event on, and the timings at the end."""
    times: list[float] = []
    with closing(connect(engine.port, {**body, "stream": True, "return_progress": True})) as client:
        for line in _lines(client):
            if b'"prompt_progress"' in line:
                times.append(time.monotonic())
            if b'"timings"' in line:
                timings: dict[str, Any] = json.loads(line.removeprefix(b"data: "))["timings"]
                return [each - times[0] for each in times], timings
    raise SystemExit("llama-server has ended a stream without its timings")


def long_prompt(words: int, seed: object) -> list[dict[str, str]]:
    """Messages that no cache knows."""
    chosen = random.Random(str(seed)).choices(WORDS, k=words)
    return [{"role": "user", "content": f"{seed} {' '.join(chosen)}"}]


def wait_until(claim: Callable[[], bool], limit_s: float = WAIT_LIMIT_S) -> None:
    """Look again and again until a claim is true; ends the program when it never is."""
    deadline = time.monotonic() + limit_s
    while not claim():
        if time.monotonic() > deadline:
            raise SystemExit(f"what was waited for has not come within {limit_s:g} s")
        time.sleep(LOOK_S)


def _generated(slot: dict[str, Any]) -> int:
    state = slot.get("next_token") or {}
    state = state[0] if isinstance(state, list) else state
    return int(state.get("n_decoded", 0))


def _lines(client: socket.socket) -> Iterator[bytes]:
    rest = b""
    while piece := client.recv(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
