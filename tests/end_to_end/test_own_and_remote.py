"""A model with a llama-server that Corral starts and one that runs already: they serve it together."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.children import fake_engine
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import Gateway
from support.matrix import said_to
from support.raw_client import Reply
from support.talk import CHAT, DONE, begin, chat, new_id, post, record_of, text_of

OPERATOR = "key-of-operator"
PACE = "extra_args: [--token-s, '0.02']"
BODY = chat('script:{"count": 40}', model="m", max_tokens=50, stream=True)


@dataclass(frozen=True)
class Mixed:
    """A gateway with such a model, whose settings a test can write anew."""

    gateway: Gateway
    remote: FakeLlama
    directory: Path

    def write(self, *, remote: bool = True, more: str = "") -> None:
        write_settings(self.directory, settings(self.directory, self.remote, remote=remote, more=more))

    def act(self, action: str) -> dict[str, Any]:
        reply = self.gateway.post(f"/admin/{action}", None, key=OPERATOR)
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()
        return told

    def replicas(self) -> dict[str, dict[str, Any]]:
        told = self.gateway.get("/admin/models/m", headers={"authorization": f"Bearer {OPERATOR}"}).json()
        return {each["name"]: each for each in told["replicas"]}


def settings(directory: Path, fake: FakeLlama, *, remote: bool = True, more: str = "") -> str:
    at = f", remote: {fake.url}" if remote else ""
    return f"models: [{{name: m, file: {directory / 'model.gguf'}, {PACE}{at}{more}}}]"


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with FakeLlama(token_s=0.02) as fake:
        file = write_settings(tmp_path, settings(tmp_path, fake))
        engine = str(fake_engine(tmp_path))
        with Gateway(tmp_path, CORRAL_CONFIG=str(file), LLAMA_SERVER_BIN=engine, OPERATOR_API_KEY=OPERATOR) as gateway:
            gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 2, "both ready")
            yield Mixed(gateway, fake, tmp_path)


def test_both_serve_it(mixed: Mixed) -> None:
    assert mixed.replicas().keys() == {"m/0", "m/remote-0"}
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda _: post(mixed.gateway, CHAT, BODY), range(4)))
    assert [reply.events[-1] for reply in replies] == [DONE] * 4
    assert {reply.headers["x-corral-replica"] for reply in replies} == {"m/0", "m/remote-0"}


def test_an_answer_goes_on_from_ours_to_the_other(mixed: Mixed) -> None:
    mixed.act("models/m/drain?replica=m/remote-0")
    request_id = new_id()
    with begin(mixed.gateway, CHAT, BODY, **{"x-request-id": request_id}) as client:
        start = client.receive(until=b'"content"')
        mixed.act("models/m/load?replica=m/remote-0")
        os.kill(mixed.replicas()["m/0"]["pid"], signal.SIGKILL)
        rest = client.receive()
    assert text_of(Reply([*start.parts, *rest.parts], rest.end)) == said_to(CHAT, BODY)
    record = record_of(mixed.gateway, request_id)
    assert (record["outcome"], record["resumed"], record["replica"]) == ("ok", 1, "m/remote-0")


def test_the_other_serves_it_while_ours_is_not_loaded_and_a_drained_model_is_served_by_none(mixed: Mixed) -> None:
    mixed.act("models/m/unload")
    for _ in range(3):
        assert post(mixed.gateway, CHAT, BODY).headers["x-corral-replica"] == "m/remote-0"
    mixed.act("models/m/load")
    mixed.act("models/m/drain")
    assert post(mixed.gateway, CHAT, BODY).status == 503
    mixed.act("models/m/load")
    assert post(mixed.gateway, CHAT, BODY).status == 200


def test_a_reload_takes_the_other_away_and_brings_it_back_and_ours_stays(mixed: Mixed) -> None:
    pid = mixed.replicas()["m/0"]["pid"]
    mixed.write(remote=False)
    assert mixed.act("reload")["replaced"] == ["m"]
    assert {name: each["pid"] for name, each in mixed.replicas().items()} == {"m/0": pid}
    mixed.write()
    mixed.act("reload")
    mixed.gateway.until(lambda: mixed.replicas().get("m/remote-0", {}).get("state") == "ready", "with the other")
    assert mixed.replicas()["m/0"]["pid"] == pid
    # New processes of ours are made beside the other, too.
    mixed.write(more=", ctx: 512")
    mixed.act("reload")
    mixed.gateway.until(lambda: pid not in [each["pid"] for each in mixed.replicas().values()], "renewed")
    assert "m/remote-0" in mixed.replicas()
    assert post(mixed.gateway, CHAT, BODY).status == 200
