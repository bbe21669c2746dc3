"""Starts the fake llama-server as a process of its own and tells it what to do wrong."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = Path(__file__).parent.parent / "fake_llama.py"
# The fake answers its control routes at once; longer means that it hangs.
CONTROL_S = 5.0
# How long a condition may take to come true on a slow machine.
PATIENCE_S = 10.0


class FakeLlama:
    """A running fake. It ends with ``stop``, with the ``with`` block, and at the latest with this process.

    Options are the flags of ``fake_llama.py`` with ``_`` for ``-``: ``FakeLlama(slots=1, token_s=0.05)``; faults are
    ``kind,key=value,…``. Embeddings and metrics are on, as Corral starts its llama-servers. ``within`` begins the
    command of one that runs elsewhere, as ``Host.within`` does, and ``host`` is its address there.
    """

    def __init__(
        self,
        *faults: str,
        embeddings: bool = True,
        metrics: bool = True,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        **options: object,
    ) -> None:
        self.host = host
        options |= {"embeddings": embeddings, "metrics": metrics, "host": host, "exit_with_stdin": True}
        command = [*within, sys.executable, str(PROGRAM), *flags(options)]
        for fault in faults:
            command += ["--fault", fault]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ports = self._ports()
        self.port = int(ports["port"])
        self.control_port = int(ports["control"])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def requests(self, path: str | None = None) -> list[dict[str, Any]]:
        """What it got so far, in order; of one path if that is given."""
        told: list[dict[str, Any]] = self._control("GET", "/fake/requests")
        return [request for request in told if path is None or request["path"] == path]

    def state(self) -> dict[str, Any]:
        told: dict[str, Any] = self._control("GET", "/fake/state")
        return told

    def fault(self, kind: str, **keys: object) -> None:
        """Put a fault in force beside those that are."""
        self._control("POST", "/fake/faults", {"kind": kind} | keys)

    def clear_faults(self) -> None:
        self._control("DELETE", "/fake/faults")

    def set(self, **settings: object) -> None:
        """Change settings: ``set(token_s=0.1)``."""
        self._control("POST", "/fake/settings", settings)

    def reset(self) -> None:
        """As freshly started and loaded; open connections are reset."""
        self._control("POST", "/fake/reset")

    def until(self, true_of: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first state that a condition is true of; fails after ``PATIENCE_S``. Blocks: not for an event loop."""
        deadline = time.monotonic() + PATIENCE_S
        while not true_of(state := self.state()):
            assert time.monotonic() < deadline, f"still not so: {state}"
        return state

    def until_ended(self, path: str | None = None) -> list[dict[str, Any]]:
        """Its requests, once none of them runs any more."""
        self.until(lambda state: state["running"] == 0)
        return self.requests(path)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _ports(self) -> dict[str, int]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise AssertionError("the fake did not start; its reason stands on stderr")
        ports: dict[str, int] = json.loads(line)
        return ports

    def _control(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(self.host, self.control_port, timeout=CONTROL_S)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, {"Connection": "close"})
            reply = connection.getresponse()
            told = json.loads(reply.read())
        finally:
            connection.close()
        assert reply.status == 200, told
        return told


def flags(options: dict[str, object]) -> list[str]:
    """Options as command line flags; one that is ``True`` has no value, one that is ``False`` is left out."""
    made: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        made.append(f"--{name.replace('_', '-')}")
        if value is not True:
            made.append(str(value))
    return made
