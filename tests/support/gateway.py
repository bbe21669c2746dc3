"""Runs a real Corral as a process, as users do, and looks at what it tells."""

import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from support.door import Door
from support.ports import free_port

# How long a condition may take to come true on a slow, busy machine.
PATIENCE_S = 60.0
KEY = "local"
# What is 0 when nobody is served.
BUSY = ("corral_exchanges_in_flight", "corral_slots_busy", "corral_slots_lingering")


class Gateway:
    """A running Corral, by either door. One that ends with the ``with`` block has left nothing busy, waiting or behind.

    Settings are environment names: ``Gateway(MODEL_UPSTREAMS="a=http://…")``; nothing else of this process's
    settings reaches it, and it runs in a directory of its own.
    """

    def __init__(
        self, directory: Path, *arguments: str, door: Door = Door.LANE, check_idle: bool = True, **settings: str
    ) -> None:
        self.port = free_port()
        self.directory = directory
        self.url = f"http://127.0.0.1:{self.port}"
        self._check_idle = check_idle
        self._lines: list[str] = []
        self._events: list[dict[str, Any]] = []
        # Each request has a connection of its own; a context that trusts nobody costs no reading of certificates.
        self._http = httpx.Client(
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        environment = {name: value for name, value in os.environ.items() if not is_setting(name)}
        settings = {"OPENAI_API_KEY": KEY, **settings}
        self.process = subprocess.Popen(
            door.command(self.port, arguments, settings),
            env={**environment, "PYTHONUNBUFFERED": "1", **settings},
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.until_listening()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._check_idle and self.process.poll() is None:
                self.until_idle()
        finally:
            self.stop()

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return "".join(self._lines)

    def events(self) -> list[dict[str, Any]]:
        """Its log lines so far."""
        return list(self._events)

    def records(self) -> list[dict[str, Any]]:
        """The log lines of its exchanges so far, in the order in which they ended."""
        return [event for event in self.events() if event["event"] == "exchange"]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels, 0 when there is none."""
        return sum_of(self.get("/metrics").text, name, **labels)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(self.url + path, **options)

    def post(self, path: str, body: object, *, key: str | None = KEY, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return self._http.post(self.url + path, json=body, headers=headers | options.pop("headers", {}), **options)

    def until(self, claim: Callable[[], object], what: str, *, pause_s: float = 0.01) -> None:
        """Wait until a claim is true; fails, with what Corral printed, after a while."""
        deadline = time.monotonic() + PATIENCE_S
        while not claim():
            assert time.monotonic() < deadline, f"never {what}:\n{self.output}"
            time.sleep(pause_s)

    def until_listening(self) -> None:
        self.until(lambda: self._live() or self.process.poll() is not None, "listening")
        assert self.process.poll() is None, f"Corral ended with {self.process.returncode}:\n{self.output}"

    def until_ready(self) -> None:
        self.until(lambda: self.get("/health").status_code == 200, "ready")

    def until_idle(self) -> None:
        """Nothing in flight, nothing waiting, nothing busy; as many records as exchanges were counted."""
        metrics = ""

        def idle() -> bool:
            nonlocal metrics
            metrics = self.get("/metrics").text
            return not any(sum_of(metrics, name) for name in BUSY)

        self.until(idle, f"without {', '.join(BUSY)}")
        assert not sum_of(metrics, "corral_queue_waiters")
        counted = int(sum_of(metrics, "corral_requests_total"))
        self.until(lambda: len(self.records()) >= counted, f"{counted} records")
        assert len(self.records()) == counted

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block it does not run, and what happens meanwhile it finds all at once, in its order."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, and return its exit code; it has to end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"Corral did not stop:\n{self.output}") from None
        self._reader.join(PATIENCE_S)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def _live(self) -> bool:
        try:
            return self.get("/health/live").status_code == 200
        except httpx.HTTPError:
            return False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            if line.startswith("{"):
                self._events.append(json.loads(line))


def sum_of(metrics: str, name: str, **labels: str) -> float:
    """The sum of the series of a metric that have these labels, in Prometheus's text."""
    total = 0.0
    for line in metrics.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line) if line.startswith(name) else None
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total


def is_setting(name: str) -> bool:
    """An environment name that Corral reads."""
    return name.startswith(("CORRAL_", "LLAMA_", "MODEL_", "OPENAI_", "OPERATOR_", "ENABLED_"))
