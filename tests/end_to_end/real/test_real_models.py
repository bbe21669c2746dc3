"""Two models side by side, started and stopped by the launcher scripts, each under its own name."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.children import alive
from support.commands import succeed
from support.gateway import Gateway
from support.models import gemma, smollm2
from support.offspring import children_of
from support.ports import free_port

pytestmark = pytest.mark.engine

SCRIPTS = Path(__file__).parents[3] / "scripts"
START, STOP = SCRIPTS / "run_llama_servers_multi.sh", SCRIPTS / "stop_llama_servers_multi.sh"


@dataclass(frozen=True)
class Launched:
    """Settings for two models, and the directory where the launcher keeps its notes."""

    run_dir: Path
    ports: tuple[int, int]

    @property
    def upstreams(self) -> str:
        return "smol=http://127.0.0.1:{},gemma=http://127.0.0.1:{}".format(*self.ports)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "MODEL_UPSTREAMS": self.upstreams,
            "MODEL_PATHS": f"smol={smollm2()},gemma={gemma()}",
            "LLAMA_CTX": "1024",
            "LLAMA_PARALLEL": "1",
            "LLAMA_THREADS": "1",
        }

    def run(self, script: Path, **more: str) -> str:
        """What a script prints; it has to succeed."""
        return succeed([script, "--run-dir", self.run_dir], self.run_dir.parent, **self.settings, **more)

    def pids(self) -> list[int]:
        """The process that keeps the llama-servers, and theirs."""
        keeper = json.loads((self.run_dir / "llama-servers.json").read_text())["pid"]
        return [keeper, *children_of(keeper)]

    def listening(self) -> list[bool]:
        return [_listens(port) for port in self.ports]


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    launched = Launched(tmp_path / "run", (free_port(), free_port()))
    try:
        yield launched
    finally:
        launched.run(STOP)


def test_both_answer_under_their_own_names_and_stopping_leaves_nothing(launched: Launched, tmp_path: Path) -> None:
    printed = launched.run(START)
    assert "smol" in printed
    assert "gemma" in printed
    pids = launched.pids()
    assert len(pids) == 3
    with Gateway(tmp_path, MODEL_UPSTREAMS=launched.upstreams) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 2, "ready with both")
        texts = {name: answer_of(gateway, name) for name in ("smol", "gemma")}
        assert texts["smol"] != texts["gemma"]
        assert [model["id"] for model in models_of(gateway)] == ["smol", "gemma"]
        assert {model["context_length"] for model in models_of(gateway)} == {1024}
        for name, width in (("smol", 576), ("gemma", 640)):
            vectors = gateway.post("/v1/embeddings", {"model": name, "input": "a horse"}).json()
            assert len(vectors["data"][0]["embedding"]) == width
        gateway.until(lambda: len(gateway.records()) == 4, "done")
        served = [(record["model"], record["replica"]) for record in gateway.records()]
        assert served == [(name, f"{name}/0") for name in ("smol", "gemma", "smol", "gemma")]
    assert "smol, gemma" in launched.run(STOP)
    assert not any(alive(pid) for pid in pids)
    assert launched.listening() == [False, False]
    assert "nothing is running" in launched.run(STOP)


def test_only_the_model_that_is_enabled_is_started(launched: Launched, tmp_path: Path) -> None:
    launched.run(START, ENABLED_MODELS="gemma")
    assert launched.listening() == [False, True]
    assert len(launched.pids()) == 2
    with Gateway(tmp_path, MODEL_UPSTREAMS=launched.upstreams, CORRAL_QUEUE_UNREADY_PATIENCE="100ms") as gateway:
        gateway.until_ready()
        assert answer_of(gateway, "gemma")
        reply = gateway.post("/v1/completions", {"model": "smol", "prompt": "One", "max_tokens": 1})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_not_ready")


def answer_of(gateway: Gateway, name: str) -> str:
    body = {"model": name, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 20}
    reply = gateway.post("/v1/completions", body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == name
    text: str = reply.json()["choices"][0]["text"]
    assert text.strip()
    return text


def models_of(gateway: Gateway) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = gateway.get("/v1/models", headers={"authorization": "Bearer local"}).json()[
        "data"
    ]
    return listed


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
