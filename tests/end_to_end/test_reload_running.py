"""A reload of a running Corral, by signal and by command: streams go on, and wrong settings change nothing."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.children import fake_engine
from support.commands import run
from support.door import Door
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import KEY, Gateway
from support.offspring import children_of
from support.raw_client import RawClient
from support.talk import CHAT, begin, chat

OPERATOR = "key-of-operator"
HEAD = "models:\n"
ONE = "  - {{name: one, file: {file}, extra_args: [--token-s, '0.02']}}\n"
TWO = "  - {{name: two, file: {file}, extra_args: [--token-s, '0.02'], description: '{told}'}}\n"
REMOTE = "  - {{name: remote, remote: {fake.url}}}\n"


class Reloaded:
    """A gateway whose settings file a test writes anew."""

    def __init__(self, gateway: Gateway, directory: Path, names: dict[str, Any]) -> None:
        self.gateway = gateway
        self._directory = directory
        self._names = names

    def write(self, text: str, **more: str) -> None:
        write_settings(self._directory, text.format(**{**self._names, **more}))

    def command(self) -> Any:
        return run(
            [sys.executable, "-P", "-m", "corral", "reload", "--url", self.gateway.url],
            self._directory,
            OPERATOR_API_KEY=OPERATOR,
        )

    def post(self, key: str = OPERATOR) -> Any:
        return self.gateway.post("/admin/reload", None, key=key)

    def names(self) -> list[str]:
        listed = self.gateway.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).json()
        return [model["id"] for model in listed["data"]]


@pytest.fixture(params=Door, ids=lambda door: door.value)
def reloaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reloaded]:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with FakeLlama(token_s=0.02) as fake:
        names = {"file": file, "fake": fake, "told": "first"}
        settings = write_settings(tmp_path, (HEAD + ONE + TWO + REMOTE).format(**names))
        with Gateway(
            tmp_path,
            door=request.param,
            CORRAL_CONFIG=str(settings),
            LLAMA_SERVER_BIN=str(fake_engine(tmp_path)),
            OPERATOR_API_KEY=OPERATOR,
        ) as gateway:
            gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 3, "all ready")
            yield Reloaded(gateway, tmp_path, names)


def stream(gateway: Gateway, model: str) -> RawClient:
    client = begin(gateway, CHAT, chat('script:{"count": 100}', model=model, max_tokens=100, stream=True))
    client.receive(until=b'"content"')
    return client


def test_streams_go_on_through_reloads_and_unchanged_models_keep_their_processes(reloaded: Reloaded) -> None:
    gateway = reloaded.gateway
    before = set(children_of(gateway.process.pid))
    with ExitStack() as stack:
        clients = [stack.enter_context(stream(gateway, model)) for model in ("one", "two", "remote")]
        reload_often(reloaded)
        for client in clients:
            assert b"data: [DONE]\n\n" in client.receive(until=b"[DONE]\n\n").raw
    gateway.until(lambda: len(children_of(gateway.process.pid)) == 2, "down to two processes")
    assert len(before & set(children_of(gateway.process.pid))) == 1
    assert gateway.post(CHAT, chat(model="two", max_tokens=2)).status_code == 200
    gateway.until_idle()
    assert {record["outcome"] for record in gateway.records()} == {"ok"}


def reload_often(reloaded: Reloaded) -> None:
    for text, expected in (
        (HEAD + ONE + TWO, {"removed": ["remote"]}),
        (HEAD + ONE, {"removed": ["two"]}),
        (HEAD + ONE + TWO.replace("description", "ctx: 512, description"), {"added": ["two"]}),
        (HEAD + ONE + TWO.replace("description", "ctx: 1024, description"), {"replaced": ["two"]}),
        (HEAD + ONE + TWO.replace("description", "ctx: 1024, hidden: true, description"), {"adjusted": ["two"]}),
    ):
        reloaded.write(text)
        told = reloaded.post().json()
        assert {kind: names for kind, names in told.items() if names} == expected
    assert reloaded.names() == ["one"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("queue:\n  lenght: 5\n", "queue.lenght"),
        ("  - {{name: three, hf: nothing}}\n", "the model 'three', hf: no model"),
    ],
)
def test_wrong_settings_change_nothing_and_say_why(reloaded: Reloaded, wrong: str, why: str) -> None:
    gateway = reloaded.gateway
    before = children_of(gateway.process.pid)
    reloaded.write(HEAD + ONE + wrong)
    refused = reloaded.post()
    assert refused.status_code == 400
    assert "nothing was changed" in refused.json()["error"]["message"]
    assert why in refused.json()["error"]["message"]
    done = reloaded.command()
    assert (done.returncode, done.stdout) == (1, "")
    assert why in " ".join(done.stderr.split())
    assert reloaded.names() == ["one", "two", "remote"]
    assert children_of(gateway.process.pid) == before


def test_only_operators_reload(reloaded: Reloaded) -> None:
    assert reloaded.post(key=KEY).status_code == 403


def test_the_command_says_what_has_changed(reloaded: Reloaded) -> None:
    assert "no model has changed" in reloaded.command().stdout
    reloaded.write(HEAD + ONE + TWO + "server: {{keep_alive: 5s}}\n", told="second")
    done = reloaded.command()
    assert done.stdout.splitlines() == [
        "removed: remote",
        "adjusted: two",
        "counts after a restart: server.keep_alive",
    ]


def test_a_hangup_reloads_and_a_wrong_file_is_told_to_the_log(reloaded: Reloaded) -> None:
    gateway = reloaded.gateway
    if gateway.process.args and "uvicorn" in list(gateway.process.args):  # type: ignore[arg-type]  # a list of ours
        pytest.skip("signals are the ASGI server's matter behind the other door")
    reloaded.write(HEAD + ONE)
    gateway.process.send_signal(signal.SIGHUP)
    gateway.until(lambda: reloaded.names() == ["one"], "reloaded")
    reloaded.write("models: []\n")
    gateway.process.send_signal(signal.SIGHUP)
    gateway.until(lambda: any(event["event"] == "settings not reloaded" for event in gateway.events()), "refused")
    (refused,) = [event for event in gateway.events() if event["event"] == "settings not reloaded"]
    assert (refused["level"], reloaded.names()) == ("error", ["one"])
    assert "models" in json.dumps(refused["problems"])
