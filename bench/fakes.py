"""Fake llama-servers for measurements: killed, stopped and told to misbehave, at one address all their life."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from corral_process import HERE, Child, leashed

HOST = "127.0.0.1"
PROGRAM = HERE.parent / "tests" / "fake_llama.py"
# Below the ports that systems give to outgoing connections: nobody takes it while the fake is dead.
PORTS = range(20_000, 30_000)
# One that is stopped does not answer.
CONTROL_S = 1.0


class Fake:
    """A fake that may be dead. One writer: the thread that started it, with which it ends."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._flags = flags
        self._child: Child | None = None
        self._control_port = 0
        self.start()

    @property
    def pid(self) -> int | None:
        """None when it is dead."""
        return self._child.pid if self._child is not None and self._child.process.poll() is None else None

    def start(self) -> None:
        """Start it, or start it again."""
        self.stop()
        command = leashed(str(PROGRAM), "--port", str(self.port), *self._flags)
        self._child = Child(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        )
        output = self._child.process.stdout
        line = output.readline() if output is not None else b""
        self._control_port = json.loads(line)["control"] if line else 0

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    def fault(self, fault: dict[str, Any]) -> None:
        """Put a fault in force, if it lives and is not stopped."""
        self._control("POST", fault)

    def clear_faults(self) -> None:
        self._control("DELETE", None)

    def stop(self) -> None:
        if self._child is not None:
            self.send(signal.SIGKILL)
            self._child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _control(self, method: str, body: dict[str, Any] | None) -> None:
        connection = http.client.HTTPConnection(HOST, self._control_port, timeout=CONTROL_S)
        with suppress(OSError, http.client.HTTPException):
            connection.request(method, "/fake/faults", json.dumps(body) if body else None, {"Connection": "close"})
            connection.getresponse().read()
        connection.close()


def free_port() -> int:
    """A port that nothing listens at."""
    for port in random.sample(PORTS, 100):
        with suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise SystemExit(f"no port is free from {PORTS.start} to {PORTS.stop}")
