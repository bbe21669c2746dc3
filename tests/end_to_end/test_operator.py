"""The operator's API and the commands that talk to it, on a Corral whose llama-servers are fakes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.children import alive, fake_engine
from support.commands import corral, run
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import KEY, Gateway
from support.offspring import children_of
from support.talk import CHAT, chat

OPERATOR = "key-of-operator"
MODELS = """\
fleet:
  on_demand: true
models:
  - name: one
    aliases: [uno, org/uno]
    description: the first
    file: {file}
    fallback: two
  - name: two
    file: {file}
  - name: large
    file: {file}
    memory_size: 100GiB
  - name: wrong
    file: {file}
    extra_args: [--bogus]
    hidden: true
    fallback: two
  - name: remote
    remote: {fake.url}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("operated")
    file = directory / "model.gguf"
    file.write_bytes(b"GGUF")
    with FakeLlama() as fake:
        settings = write_settings(directory, MODELS.format(file=file, fake=fake))
        with Gateway(
            directory,
            CORRAL_CONFIG=str(settings),
            LLAMA_SERVER_BIN=str(fake_engine(directory)),
            OPERATOR_API_KEY=OPERATOR,
            CORRAL_FLEET_MEMORY_SIZE="10GiB",
        ) as gateway:
            yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """Nothing is loaded before a test, nor busy after it."""
    for name in ("one", "two"):
        act(shared, name, "unload")
        act(shared, name, "unpin")
    yield shared
    shared.until_idle()


def act(gateway: Gateway, name: str, action: str, *, key: str = OPERATOR) -> httpx.Response:
    return gateway.post(f"/admin/models/{name}/{action}", None, key=key)


def models(gateway: Gateway) -> dict[str, dict[str, Any]]:
    told = gateway.get("/admin/models", headers={"authorization": f"Bearer {OPERATOR}"}).json()
    return {model["name"]: model for model in told["models"]}


def command(gateway: Gateway, *arguments: str, key: str | None = OPERATOR) -> "subprocess.CompletedProcess[str]":
    keys = {"OPERATOR_API_KEY": key} if key else {}
    return corral([*arguments, "--url", gateway.url], Path("/"), **keys)


def test_everything_is_told_of_the_models(gateway: Gateway) -> None:
    assert gateway.post(CHAT, chat(model="one")).status_code == 200
    told = models(gateway)
    assert set(told) == {"one", "two", "large", "wrong", "remote"}
    one = told["one"]
    (replica,) = one["replicas"]
    assert (one["phase"], one["ready"], one["on_demand"], one["started"]) == ("loaded", True, True, True)
    assert (replica["state"], replica["slots"], replica["busy"]) == ("ready", 2, 0)
    assert replica["served"] > 0
    assert replica["pid"] in children_of(gateway.process.pid)
    assert 0 < replica["memory_bytes"] == one["memory_bytes"]
    assert (told["two"]["phase"], told["two"]["replicas"][0]["pid"]) == ("unloaded", None)
    assert (told["remote"]["phase"], told["remote"]["started"], told["remote"]["ready"]) == (None, False, True)
    detail = gateway.get("/admin/models/org/uno", headers={"authorization": f"Bearer {OPERATOR}"}).json()
    assert any("start 1 of one" in line for line in detail["log"])


def test_a_model_is_loaded_and_unloaded(gateway: Gateway) -> None:
    loaded = act(gateway, "one", "load").json()
    (replica,) = loaded["replicas"]
    assert (loaded["phase"], alive(replica["pid"])) == ("loaded", True)
    assert act(gateway, "one", "unload").json()["phase"] == "unloaded"
    assert not alive(replica["pid"])


def test_a_restart_is_another_process_and_no_request_fails(gateway: Gateway) -> None:
    first = act(gateway, "one", "load").json()["replicas"][0]["pid"]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(gateway.post, CHAT, chat(model="one")) for _ in range(20)]
        restarted = act(gateway, "one", "restart")
        replies = [each.result().status_code for each in asked]
    assert restarted.status_code == 200
    assert replies == [200] * 20
    assert all(replica["pid"] != first for replica in restarted.json()["replicas"] if not replica["draining"])


@pytest.mark.parametrize("name", ["two", "remote"])
def test_a_drained_model_takes_no_requests_until_it_is_loaded(gateway: Gateway, name: str) -> None:
    assert act(gateway, name, "load").status_code == 200
    assert act(gateway, name, "drain").json()["drained"]
    refused = gateway.post(CHAT, chat(model=name))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
    assert "takes no requests" in refused.json()["error"]["message"]
    assert act(gateway, name, "load").status_code == 200
    assert gateway.post(CHAT, chat(model=name)).status_code == 200


def test_a_model_is_pinned_and_unpinned(gateway: Gateway) -> None:
    assert act(gateway, "one", "pin").json()["pinned"]
    assert models(gateway)["one"]["pinned"]
    assert not act(gateway, "one", "unpin").json()["pinned"]


def test_what_does_not_fit_is_refused_with_the_sum(gateway: Gateway) -> None:
    for refused in (gateway.post(CHAT, chat(model="large")), act(gateway, "large", "load")):
        assert refused.status_code == 503
        assert "needs 100.0 GiB of memory and the budget is 10.0 GiB" in refused.json()["error"]["message"]


def test_what_cannot_be_started_says_why(gateway: Gateway) -> None:
    refused = act(gateway, "wrong", "load")
    assert refused.status_code == 503
    assert "--bogus" in refused.json()["error"]["message"]
    assert models(gateway)["wrong"]["phase"] == "failed"


@pytest.mark.parametrize("action", ["unload", "restart", "pin", "unpin"])
def test_what_runs_elsewhere_cannot_be_loaded_or_stopped(gateway: Gateway, action: str) -> None:
    refused = act(gateway, "remote", action)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_a_model_there_is_not_is_not_found(gateway: Gateway) -> None:
    assert act(gateway, "nothing", "load").status_code == 404


def test_clients_may_not_operate(gateway: Gateway) -> None:
    assert act(gateway, "one", "load", key=KEY).status_code == 403
    assert gateway.get("/admin/models").status_code == 401
    assert gateway.get("/admin/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 403


def test_without_an_operators_key_there_is_no_such_api(tmp_path: Path) -> None:
    with FakeLlama() as fake, Gateway(tmp_path, MODEL_UPSTREAMS=f"a={fake.url}") as gateway:
        assert gateway.get("/admin/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 404
        done = command(gateway, "models", "list", key=KEY)
        assert done.returncode == 1
        assert "no operator's API: start it with OPERATOR_API_KEY" in done.stderr


# Names and fallbacks, as clients see them.


def test_an_alias_is_a_name_and_a_hidden_model_stands_in_no_list(gateway: Gateway) -> None:
    assert gateway.post(CHAT, chat(model="uno")).json()["model"] == "uno"
    listed = gateway.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).json()["data"]
    assert {model["id"] for model in listed} == {"one", "two", "large", "remote"}
    one = next(model for model in listed if model["id"] == "one")
    assert (one["description"], one["aliases"]) == ("the first", ["uno", "org/uno"])
    assert "wrong" not in gateway.get("/health").json()["models"]
    assert "wrong" not in gateway.post(CHAT, chat(model="nothing")).json()["error"]["message"]


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_when_a_model_cannot_answer_its_fallback_does_and_a_header_names_it(
    gateway: Gateway, fields: dict[str, Any]
) -> None:
    reply = gateway.post(CHAT, chat(model="wrong", **fields))
    assert (reply.status_code, reply.headers["x-corral-fallback"]) == (200, "two")
    assert "x-corral-fallback" not in gateway.post(CHAT, chat(model="two")).headers
    gateway.until_idle()
    assert [record["model"] for record in gateway.records()[-2:]] == ["two", "two"]


# Commands.


def test_the_commands_do_what_they_say(gateway: Gateway) -> None:
    assert command(gateway, "models", "load", "one").stdout.startswith("one: loaded in ")
    assert "(pinned)" in command(gateway, "models", "pin", "one").stdout
    listed = command(gateway, "models", "list").stdout
    assert all(word in listed for word in ("one", "loaded", "0/2", "pinned", "unloaded", "of 10.0 GiB"))
    assert "(pinned)" not in command(gateway, "models", "pin", "one", "--off").stdout
    assert "start 1 of one" in command(gateway, "models", "show", "one").stdout
    assert command(gateway, "models", "restart", "one").returncode == 0
    assert command(gateway, "models", "drain", "one").stdout.startswith("one: drained")
    assert command(gateway, "models", "unload", "one", "--at-once").returncode == 0
    assert models(gateway)["one"]["phase"] == "unloaded"
    assert command(gateway, "models", "load", "one").returncode == 0


def test_the_commands_speak_json(gateway: Gateway) -> None:
    for arguments in (("models", "list"), ("status",)):
        told = json.loads(command(gateway, *arguments, "--json").stdout)
        assert {model["name"] for model in told["models"]} >= {"one", "two"}
    assert json.loads(command(gateway, "models", "unload", "one", "--json").stdout)["phase"] == "unloaded"


def test_status_prints_a_table_once_where_it_is_no_terminal(gateway: Gateway) -> None:
    assert "remote" in command(gateway, "status").stdout
    assert "remote" in command(gateway, "status", "--once").stdout


@pytest.mark.parametrize(
    ("arguments", "key", "says"),
    [
        (("models", "load", "nothing"), OPERATOR, "the model 'nothing' does not exist; there are: 'one'"),
        (("models", "list"), "wrong", "set OPERATOR_API_KEY to the one that Corral was started with"),
        (("models", "list"), None, "set OPERATOR_API_KEY to the one that Corral was started with"),
        (("models", "load", "large"), OPERATOR, "needs 100.0 GiB of memory and the budget is 10.0 GiB"),
        (("models", "unload", "remote"), OPERATOR, "are not started by Corral"),
    ],
)
def test_a_command_that_fails_says_what_to_do(
    gateway: Gateway, arguments: tuple[str, ...], key: str | None, says: str
) -> None:
    done = command(gateway, *arguments, key=key)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nobody_answers_the_command_says_how_to_start(tmp_path: Path) -> None:
    done = run([sys.executable, "-P", "-m", "corral", "status", "--url", "http://127.0.0.1:1"], tmp_path)
    assert done.returncode == 1
    assert "no Corral answers at http://127.0.0.1:1" in done.stderr
    assert "corral serve" in done.stderr


def test_the_key_is_found_in_env(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OPERATOR_API_KEY={OPERATOR}\n")
    assert run([sys.executable, "-P", "-m", "corral", "models", "list", "--url", gateway.url], tmp_path).returncode == 0


def test_a_crash_while_nobody_looks_leaves_the_model_loaded(gateway: Gateway) -> None:
    pid = act(gateway, "two", "load").json()["replicas"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert gateway.post(CHAT, chat(model="two")).status_code == 200
    assert models(gateway)["two"]["replicas"][0]["pid"] != pid


def test_the_metrics_tell_of_models_that_come_and_go_and_load_none(gateway: Gateway) -> None:
    before = gateway.metric("corral_model_loads_total", model="one")
    assert gateway.metric("corral_model_memory_bytes", model="one") == 0
    act(gateway, "one", "load")
    assert gateway.metric("corral_model_loads_total", model="one") == before + 1
    assert gateway.metric("corral_model_memory_bytes", model="one") > 0
    assert gateway.metric("corral_memory_budget_bytes") == 10 * 2**30
    unloads = gateway.metric("corral_model_unloads_total", model="one", reason="asked")
    act(gateway, "one", "unload")
    assert gateway.metric("corral_model_unloads_total", model="one", reason="asked") == unloads + 1
    assert models(gateway)["large"]["phase"] == "unloaded"
