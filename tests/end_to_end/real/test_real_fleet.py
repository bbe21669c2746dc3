"""Models that come and go, on a real llama.cpp: two names, and memory for one of them."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.children import alive
from support.front import write_settings
from support.gateway import KEY, PATIENCE_S, Gateway
from support.models import smollm2
from support.offspring import children_of

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
OPERATOR = "key-of-operator"
MODELS = """\
fleet: {{on_demand: true, memory_size: {budget}, turn: 1s}}
llama: {{ctx: 1024, parallel: 1, threads: 1}}
queue: {{unready_patience: 60s}}
models:
  - {{name: red, file: {file}, defaults: {{temperature: 0}}}}
  - {{name: blue, file: {file}}}
"""
# One takes less than 250 MiB, as estimated and in fact, and two take more than this.
BUDGET = "280MiB"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("fleet")
    settings = write_settings(directory, MODELS.format(file=smollm2(), budget=BUDGET))
    with Gateway(directory, CORRAL_CONFIG=str(settings), OPERATOR_API_KEY=OPERATOR) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.until_idle()


def hello(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, **fields}


def model(gateway: Gateway, name: str) -> dict[str, Any]:
    told: dict[str, Any] = gateway.get(f"/admin/models/{name}", headers={"authorization": f"Bearer {OPERATOR}"}).json()
    return told


def pid_of(gateway: Gateway, name: str) -> int:
    (replica,) = model(gateway, name)["replicas"]
    pid: int = replica["pid"]
    return pid


def test_nothing_is_loaded_before_it_is_asked_for_and_all_that_wait_share_a_load(gateway: Gateway) -> None:
    assert gateway.get("/health").status_code == 200
    assert children_of(gateway.process.pid) == []
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: gateway.post(CHAT, hello("red")), range(4)))
    assert [reply.status_code for reply in replies] == [200] * 4
    assert len(children_of(gateway.process.pid)) == 1
    assert gateway.metric("corral_model_loads_total", model="red") == 1


def test_the_estimate_is_near_to_what_it_really_takes(gateway: Gateway) -> None:
    estimated = model(gateway, "blue")["needed_bytes"]
    gateway.post(CHAT, hello("blue"))
    taken = model(gateway, "blue")["memory_bytes"]
    assert 0.7 * taken < estimated < 1.5 * taken


def test_a_stream_is_finished_before_its_model_makes_room(gateway: Gateway) -> None:
    gateway.post(CHAT, hello("red"))
    pid = pid_of(gateway, "red")
    body = hello("red", stream=True, max_tokens=200, ignore_eos=True)
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", gateway.url + CHAT, json=body, headers=headers, timeout=PATIENCE_S) as reply,
    ):
        lines = (line for line in reply.iter_lines() if line)
        next(lines)
        other = pool.submit(gateway.post, CHAT, hello("blue"))
        rest = list(lines)
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert other.result().status_code == 200
    assert not alive(pid)
    assert (model(gateway, "red")["phase"], model(gateway, "blue")["phase"]) == ("unloaded", "loaded")


def test_clients_of_both_are_all_served_in_turns(gateway: Gateway) -> None:
    names = ["red", "blue"] * 6
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda name: gateway.post(CHAT, hello(name)), names))
    assert [reply.status_code for reply in replies] == [200] * len(names)
    assert gateway.metric("corral_model_unloads_total", reason="evicted") > 0
    assert len(children_of(gateway.process.pid)) == 1


def test_defaults_of_the_operator_reach_llama_cpp(gateway: Gateway) -> None:
    # At temperature 0 the text is always the same.
    texts = {gateway.post(CHAT, hello("red")).json()["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 1


def test_at_the_end_no_process_is_left(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, MODELS.format(file=smollm2(), budget=BUDGET))
    with Gateway(tmp_path, CORRAL_CONFIG=str(settings), OPERATOR_API_KEY=OPERATOR) as gateway:
        gateway.post(CHAT, hello("red"))
        (pid,) = children_of(gateway.process.pid)
    assert not alive(pid)
