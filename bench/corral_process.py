"""The processes of a measurement: a ``corral serve`` of its own, the stubs behind it, and what Corral tells of itself.

    with Stub("paced_stub.py") as stub, Corral({"models": [{"name": "a", "upstream": stub.url}]}) as corral:
        corral.until_ready()
        corral.scrape().total("corral_requests_total", outcome="ok")

Everything ends with its ``with`` block, also on Ctrl-C.
"""

import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
KEY = "key-of-the-bench"
OPERATOR = "operators-key-of-the-bench"

START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
ASK_LIMIT_S = 10.0
LOOK_S = 0.05

# Corral's own settings in the environment; those of whoever measures must not reach the measured one.
SETTINGS = ("CORRAL_", "LLAMA_", "MODEL_", "OPENAI_", "OPERATOR_", "ENABLED_")
SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Scrape:
    """All series of one answer of ``/metrics``: name, labels, value."""

    series: list[tuple[str, dict[str, str], float]]

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        found = (SERIES.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
        return cls([(m[1], dict(LABEL.findall(m[2] or "")), float(m[3])) for m in found if m])

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels; 0 when there is none."""
        return sum(value for each, has, value in self.series if each == name and labels.items() <= has.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a metric's series by one of their labels."""
        sums: dict[str, float] = {}
        for each, has, value in self.series:
            if each == name:
                sums[has[label]] = sums.get(has[label], 0) + value
        return sums


class Child:
    """A process that ends with the ``with`` block: TERM, a bounded wait, KILL."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> int:
        """Stop it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Stub(Child):
    """A stub of this directory. It prints ``{"port": …}`` when it listens, and ends with its standard input."""

    def __init__(self, program: str, *arguments: str) -> None:
        command = leashed(str(HERE / program), *arguments)
        # Ctrl-C is for the one who measures, who then stops the stubs.
        super().__init__(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        )
        line = self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            self.stop()
            raise SystemExit(f"{program} does not start; its reason stands above")
        self.port = int(json.loads(line)["port"])
        self.url = f"http://127.0.0.1:{self.port}"


class Corral(Child):
    """A running ``corral serve`` with these settings (as in ``corral.yaml``), in a directory that goes with it.

    Its log is the file ``log``; what it prints for people is in ``printed``.
    """

    def __init__(self, settings: Mapping[str, Any], **environment: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="corral-bench-")
        self.place = Path(self._directory.name)
        self.log = self.place / "corral.log"
        self.printed = self.place / "stderr.txt"
        self.settings_file = self.place / "corral.yaml"
        self.configure(settings)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        self._environment = {**inherited, "OPENAI_API_KEY": KEY, **environment}
        super().__init__(self._spawn())
        self.port = 0

    def revive(self) -> None:
        """Start it again, in the same place, when it was killed; its log goes on."""
        self.process.wait()
        self.process = self._spawn()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log, self.printed.open("wb") as printed:
            return subprocess.Popen(
                leashed("-m", "corral", "serve"),
                env=self._environment,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=printed,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write its settings; those of one that runs count when it reloads them."""
        server = {"port": 0, **settings.get("server", {})}
        draft = self.settings_file.with_suffix(".new")
        draft.write_text(json.dumps({**settings, "server": server}))
        # In one step: a reload that was asked for before may read it now.
        draft.replace(self.settings_file)

    def until_ready(self) -> None:
        """Wait until every replica of every model is ready; ends the program when that does not come."""
        self.until_listening()
        self.until(self._all_ready, "ready")

    def until_listening(self) -> None:
        """Wait until it tells its port; for models that are loaded on demand nothing else is to be waited for."""
        self.until(self._find_port, "listening")

    def until(self, claim: Callable[[], bool], what: str, limit_s: float = START_LIMIT_S) -> None:
        """Look again and again until a claim is true; ends the program when it never is."""
        deadline = time.monotonic() + limit_s
        while not claim():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"Corral is not {what}:\n{self.printed.read_text()}{self.log.read_text()[-4000:]}")
            time.sleep(LOOK_S)

    def scrape(self) -> Scrape:
        """What ``/metrics`` says now."""
        return Scrape.parse(self._get("/metrics").decode())

    def events(self) -> Iterator[dict[str, Any]]:
        """The lines of its log so far."""
        for line in self.log.read_text().splitlines():
            # What a library prints on standard output is none.
            if line.startswith("{"):
                yield json.loads(line)

    def records(self) -> list[dict[str, Any]]:
        """What it has written down of each exchange that has ended."""
        return [line for line in self.events() if line["event"] == "exchange"]

    def operate(self, method: str, path: str, *, limit_s: float = START_LIMIT_S) -> tuple[int, dict[str, Any]]:
        """Ask as the operator, whose key is to be in its environment; status and JSON of the answer.

        Raises OSError when none comes.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        try:
            connection.request(method, path, headers={"Authorization": f"Bearer {OPERATOR}"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def stop(self) -> int:
        code = super().stop()
        self._directory.cleanup()
        return code

    def _find_port(self) -> bool:
        found = re.search(r"serves http://\S+?:(\d+)/v1", self.printed.read_text())
        if found is None:
            return False
        self.port = int(found[1])
        return True

    def _all_ready(self) -> bool:
        try:
            told = json.loads(self._get("/health"))
        except urllib.error.URLError:
            return False
        replicas = [replica for model in told["models"].values() for replica in model["replicas"]]
        return all(replica["state"] == "ready" for replica in replicas)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=ASK_LIMIT_S) as reply:
            answer: bytes = reply.read()
        return answer


def leashed(*arguments: str) -> list[str]:
    """Python with these arguments, as a process that dies with this one, whatever ends it."""
    return [sys.executable, "-m", "corral.upstream.leash", str(os.getpid()), "--", sys.executable, *arguments]


def raise_descriptor_limit() -> int:
    """Let this process, and what it starts, open as many files as the system lets it; how many that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def children_of(pid: int) -> set[int]:
    """The processes that this one has started, from whichever thread (Linux)."""
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            # A thread may have ended since it was listed.
            with suppress(OSError):
                found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def resident_bytes(pid: int) -> int:
    """The memory that a process holds now (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
