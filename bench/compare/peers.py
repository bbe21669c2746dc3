"""Corral and what it is compared with: how each is started, and why one cannot be."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compare.processes import KEY, MODEL, free_port

BENCH = Path(__file__).resolve().parents[1]
ROOT = BENCH.parent
CONFIGURATIONS = BENCH / "peers"
# What `make bench` installs the Python peers into.
PEERS_BIN = BENCH / ".venv" / "bin"
# More than the 2,000 streams of the row with most of them.
MANY = 8192


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer may write, the port it is to listen on, and where the stub is."""

    directory: Path
    port: int
    stub: int

    def configuration(self, name: str) -> Path:
        """A file of ``bench/peers``, filled in."""
        text = (CONFIGURATIONS / name).read_text()
        values = {"directory": self.directory, "port": self.port, "stub": self.stub, "key": KEY}
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", str(value))
        path = self.directory / name
        path.write_text(text)
        return path


@dataclass(frozen=True, slots=True)
class Peer:
    """One proxy. ``slow`` ones, a tenth of the others' speed and less, get fewer repetitions."""

    name: str
    label: str
    binary: str | Path
    command: Callable[[Place], list[str]]
    version: tuple[str, ...]
    env: Callable[[Place], Mapping[str, str]] = field(default=lambda _: {})
    slow: bool = False
    hint: str = "run make bench, which installs it into bench/.venv"

    def absent(self) -> str | None:
        """Why it cannot be run, or None."""
        return None if shutil.which(self.binary) else f"{self.binary} is not there: {self.hint}"

    def told_version(self) -> str:
        """The first line with a digit in it that the program says of its version."""
        try:
            asked = subprocess.run(self.version, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        lines = (asked.stdout + asked.stderr).strip().splitlines()
        return next((line.strip() for line in lines if any(map(str.isdigit, line))), "unknown")


def corral_env(place: Place) -> dict[str, str]:
    """Everything on: key, limit, queue, validation, metrics, a log line for each request, usage.

    The limit and the queue are wide enough not to refuse anything here.
    """
    return {
        "OPENAI_API_KEYS": f"{KEY}:bench",
        "MODEL_UPSTREAMS": f"{MODEL}=http://127.0.0.1:{place.stub}",
        "CORRAL_SERVER_PORT": str(place.port),
        "CORRAL_LIMITS_REQUESTS": "10000000",
        "CORRAL_QUEUE_LENGTH": str(MANY),
        "CORRAL_LOGS_LEVEL": "info",
    }


def router(binary: str, *more: str) -> Callable[[Place], list[str]]:
    """The command line of a Rust router; what costs it time and is of no use here is switched off."""

    def command(place: Place) -> list[str]:
        return [
            str(PEERS_BIN / binary),
            *more,
            *("--host", "127.0.0.1", "--port", str(place.port), "--policy", "round_robin"),
            *("--worker-urls", f"http://127.0.0.1:{place.stub}", "--prometheus-port", str(free_port())),
            *("--max-concurrent-requests", str(MANY), "--log-level", "error"),
            *("--disable-retries", "--disable-circuit-breaker"),
        ]

    return command


def one_thread(_: Place) -> dict[str, str]:
    """The routers run on tokio: one worker thread on one core."""
    return {"TOKIO_WORKER_THREADS": "1"}


def of_package(name: str) -> tuple[str, ...]:
    code = f"import importlib.metadata as m; print('{name}', m.version('{name}'))"
    return (str(PEERS_BIN / "python"), "-c", code)


CORRAL_BIN = ROOT / ".venv" / "bin" / "corral"
SYSTEM = "apt-get install {0}, or the like; make bench does so when it runs as root"

PEERS = [
    Peer(
        name="corral",
        label="Corral",
        binary=CORRAL_BIN,
        command=lambda _: [str(CORRAL_BIN), "serve"],
        version=(str(CORRAL_BIN), "version"),
        env=corral_env,
        hint="run make run",
    ),
    Peer(
        name="vllm-router",
        label="vllm-router",
        binary=PEERS_BIN / "vllm-router",
        command=router("vllm-router"),
        version=of_package("vllm-router"),
        env=one_thread,
    ),
    Peer(
        name="sglang-router",
        label="sglang-router",
        binary=PEERS_BIN / "sglang-router",
        command=router("sglang-router", "launch"),
        version=of_package("sglang-router"),
        env=one_thread,
    ),
    Peer(
        name="nginx",
        label="nginx",
        binary="nginx",
        command=lambda place: ["nginx", "-p", str(place.directory), "-c", str(place.configuration("nginx.conf"))],
        version=("nginx", "-v"),
        hint=SYSTEM.format("nginx"),
    ),
    Peer(
        name="haproxy",
        label="HAProxy",
        binary="haproxy",
        command=lambda place: ["haproxy", "-db", "-f", str(place.configuration("haproxy.cfg"))],
        version=("haproxy", "-v"),
        hint=SYSTEM.format("haproxy"),
    ),
    Peer(
        name="fastapi-httpx",
        label="FastAPI + httpx",
        binary=PEERS_BIN / "uvicorn",
        command=lambda place: [
            *(str(PEERS_BIN / "uvicorn"), "fastapi_httpx:app", "--app-dir", str(CONFIGURATIONS)),
            *("--host", "127.0.0.1", "--port", str(place.port), "--no-access-log", "--log-level", "warning"),
            *("--loop", "uvloop", "--http", "httptools"),
        ],
        version=of_package("httpx"),
        env=lambda place: {"STUB": f"http://127.0.0.1:{place.stub}", "KEY": KEY},
        slow=True,
    ),
    Peer(
        name="litellm",
        label="litellm[proxy]",
        binary=PEERS_BIN / "litellm",
        command=lambda place: [
            *(str(PEERS_BIN / "litellm"), "--config", str(place.configuration("litellm.yaml"))),
            *("--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"),
        ],
        version=of_package("litellm"),
        env=lambda _: {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"},
        slow=True,
    ),
]

BY_NAME = {peer.name: peer for peer in PEERS}
# The stub without any proxy: what the load and the stub cost by themselves, and the latency to which a proxy adds.
DIRECT = "direct"
LABELS = {DIRECT: "no proxy", **{peer.name: peer.label for peer in PEERS}}
ROUTERS = ("vllm-router", "sglang-router")
