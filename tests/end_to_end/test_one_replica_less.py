"""An operator takes one replica out of service: what runs there finishes, or goes on at the other."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.children import fake_engine
from support.commands import run
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import Gateway
from support.matrix import said_to
from support.raw_client import Reply
from support.talk import CHAT, DONE, begin, chat, last_error, new_id, post, record_of, text_of

OPERATOR = "key-of-operator"
MODELS = """\
models:
  - name: pair
    upstreams: [{one.url}, {other.url}]
  - name: own
    file: {file}
    on_demand: true
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("pair")
    file = directory / "model.gguf"
    file.write_bytes(b"GGUF")
    with FakeLlama(token_s=0.02) as one, FakeLlama(token_s=0.02) as other:
        settings = write_settings(directory, MODELS.format(one=one, other=other, file=file))
        with Gateway(
            directory,
            CORRAL_CONFIG=str(settings),
            LLAMA_SERVER_BIN=str(fake_engine(directory)),
            OPERATOR_API_KEY=OPERATOR,
        ) as gateway:
            gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 2, "both ready")
            yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """Both take calls before a test, and nothing is busy after it."""
    yield shared
    act(shared, "pair/load")
    shared.until_idle()


def act(gateway: Gateway, action: str) -> dict[str, Any]:
    reply = gateway.post(f"/admin/models/{action}", None, key=OPERATOR)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def command(gateway: Gateway, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-P", "-m", "corral", "models", *arguments, "--url", gateway.url]
    return run(line, Path("/"), OPERATOR_API_KEY=OPERATOR)


BODY = chat('script:{"count": 40}', model="pair", max_tokens=50, stream=True)


def streamed_while(gateway: Gateway, action: str) -> tuple[Reply, dict[str, Any], str]:
    """A stream during which an operator acts on its replica; its record, and the name of that replica."""
    request_id = new_id()
    with begin(gateway, CHAT, BODY, **{"x-request-id": request_id}) as client:
        start = client.receive(until=b'"content"')
        replica = start.headers["x-corral-replica"]
        told = act(gateway, action.format(replica))
        assert {each["name"]: each["draining"] for each in told["replicas"]}[replica]
        rest = client.receive()
    return Reply([*start.parts, *rest.parts], rest.end), record_of(gateway, request_id), replica


def test_what_runs_there_finishes(gateway: Gateway) -> None:
    reply, record, replica = streamed_while(gateway, "pair/drain?replica={}")
    assert reply.events[-1] == DONE
    assert (record["replica"], record["resumed"]) == (replica, 0)
    # The other one does all the work now, and nobody is refused.
    for _ in range(3):
        others = post(gateway, CHAT, chat(model="pair", max_tokens=4))
        assert (others.status, others.headers["x-corral-replica"] != replica) == (200, True)
    told = act(gateway, f"pair/load?replica={replica}")
    assert not any(each["draining"] for each in told["replicas"])


def test_what_runs_there_goes_on_at_the_other(gateway: Gateway) -> None:
    reply, record, replica = streamed_while(gateway, "pair/drain?replica={}&at_once=true")
    assert reply.events[-1] == DONE
    assert text_of(reply) == said_to(CHAT, BODY)
    assert (record["outcome"], record["resumed"], record["replica"] != replica) == ("ok", 1, True)
    assert gateway.metric("corral_resumed_total", model="pair", reason="upstream_withdrawn") == 1
    # It was no fault of the replica's.
    assert not gateway.metric("corral_replica_breaker_open", model="pair")
    assert gateway.metric("corral_replica_state", model="pair", state="ready") == 2


def test_where_no_other_is_left_it_is_told(gateway: Gateway) -> None:
    with begin(gateway, CHAT, BODY) as client:
        start = client.receive(until=b'"content"')
        act(gateway, "pair/drain?at_once=true")
        rest = client.receive()
    error = last_error(Reply([*start.parts, *rest.parts], rest.end))
    assert error["code"] == "model_not_ready"
    assert "takes no requests" in error["message"]


def test_a_model_that_is_unloaded_at_once_is_not_loaded_again_for_what_was_cut(gateway: Gateway) -> None:
    body = chat('script:{"count": 100000}', model="own", max_tokens=100_000, stream=True)
    with begin(gateway, CHAT, body) as client:
        start = client.receive(until=b'"content"')
        act(gateway, "own/unload?at_once=true")
        rest = client.receive()
    error = last_error(Reply([*start.parts, *rest.parts], rest.end))
    assert (error["code"], "unloaded" in error["message"]) == ("model_not_ready", True)
    assert gateway.metric("corral_model_loads_total", model="own") == 1


def test_the_commands_say_the_same(gateway: Gateway) -> None:
    assert command(gateway, "drain", "pair", "--replica", "pair/1").returncode == 0
    shown = json.loads(command(gateway, "show", "pair", "--json").stdout)
    assert [replica["draining"] for replica in shown["replicas"]] == [False, True]
    assert command(gateway, "load", "pair", "--replica", "pair/1").returncode == 0
    wrong = command(gateway, "drain", "pair", "--replica", "pair/7")
    assert (wrong.returncode, "there are: 'pair/0', 'pair/1'" in wrong.stderr) == (1, True)
