"""A llama-server at an address of its own, run as Corral runs its children: to be put behind Corral, and compared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from support.ports import free_port

# Loading takes about a second; a busy machine takes longer.
PATIENCE_S = 60.0
TICK_S = 0.02


class EmbeddedEngine:
    """A running engine, with embeddings, /slots and /metrics; it ends with the ``with`` block, or with this process.

    One thread: where others use the machine too, threads that wait for each other take far longer together.
    """

    def __init__(self, model: Path, *arguments: str, slots: int = 2, context: int = 2048) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # fmt: off
        command = [
            sys.executable, "-P", "-m", "corral.upstream.leash", str(os.getpid()), "--",
            sys.executable, "-P", "-m", "corral.upstream.embedded",
            "--model", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--metrics", "--slots",
            "--embeddings", "--pooling", "mean", "-ub", "1024", "-b", "1024",
            "-np", str(slots), "-c", str(context), "-t", "1", *arguments,
        ]
        # fmt: on
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> Self:
        self.until(self._ready, "ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it as a crash would; its connections are reset."""
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S)

    def post(self, path: str, body: object) -> Any:
        """The JSON of the answer, which has to be a success."""
        reply = httpx.post(self.url + path, json=body, timeout=PATIENCE_S)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def stream(self, path: str, body: object) -> list[Any]:
        """The chunks of a stream."""
        with httpx.stream("POST", self.url + path, json=body, timeout=PATIENCE_S) as reply:
            events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.post("/tokenize", {"content": text})["tokens"]
        return found

    def metric(self, name: str) -> float:
        """One of llama-server's metrics, named without its prefix."""
        lines = self.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))

    def busy(self) -> int:
        """How many slots work on something."""
        return sum(slot["is_processing"] for slot in self.get("/slots").json())

    def until(self, claim: Callable[[], object], what: str) -> None:
        """Wait until a claim is true; fails after a while."""
        deadline = time.monotonic() + PATIENCE_S
        while not claim():
            assert time.monotonic() < deadline, f"the engine is never {what}"
            assert self._process.poll() is None, "the engine has ended"
            time.sleep(TICK_S)

    def _ready(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx.HTTPError:
            return False
