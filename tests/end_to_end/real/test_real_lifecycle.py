"""Deaths and ends: of the llama-server, which comes back, and of Corral, which leaves nothing behind."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from openai import APIError, OpenAI

from support.children import alive
from support.gateway import KEY, PATIENCE_S, Gateway
from support.models import smollm2
from support.offspring import children_of

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
HELLO = {"model": "llama", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
LONG = {**HELLO, "max_tokens": 900, "ignore_eos": True}
REPLICA = "replica changed state"


def start(directory: Path) -> Gateway:
    return Gateway(directory, "--model", f"smol={smollm2()}", LLAMA_PARALLEL="1", LLAMA_CTX="1024", LLAMA_THREADS="1")


@pytest.fixture(scope="module")
def shared_mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with start(tmp_path_factory.mktemp("mortal")) as gateway:
        yield gateway


@pytest.fixture
def mortal(shared_mortal: Gateway) -> Iterator[Gateway]:
    """A gateway whose llama-server is going to be killed; it runs again when the next test begins."""
    shared_mortal.until_ready()
    yield shared_mortal
    shared_mortal.until_ready()
    shared_mortal.until_idle()


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that is going to be ended by the test itself."""
    gateway = start(tmp_path)
    try:
        gateway.until_listening()
        gateway.until_ready()
        yield gateway
    finally:
        gateway.stop(signal.SIGKILL)


def engine_of(gateway: Gateway) -> int:
    (pid,) = children_of(gateway.process.pid)
    return pid


def kill_engine(gateway: Gateway) -> None:
    os.kill(engine_of(gateway), signal.SIGKILL)


def test_a_killed_llama_server_comes_back_and_the_next_request_is_answered(mortal: Gateway) -> None:
    first = engine_of(mortal)
    kill_engine(mortal)
    reply = mortal.post(CHAT, HELLO)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"]
    assert engine_of(mortal) != first
    changes = [event for event in mortal.events() if event["event"] == REPLICA]
    states = [change["new"] for change in changes]
    assert states[states.index("backoff") :][:3] == ["backoff", "loading", "ready"]
    (death,) = [change for change in changes if change["new"] == "backoff"]
    assert death["level"] == "warning"
    assert "SIGKILL" in death["why"]
    assert mortal.metric("corral_replica_transitions_total", state="backoff") == 1
    assert mortal.metric("corral_replica_state", state="ready") == 1


def test_a_stream_that_loses_its_llama_server_goes_on_when_it_is_back(mortal: Gateway) -> None:
    with OpenAI(base_url=f"{mortal.url}/v1", api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="smol",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            max_tokens=60,
            extra_body={"ignore_eos": True},
        )
        chunks = iter(stream)
        first = next(chunks)
        kill_engine(mortal)
        *_, last = rest = list(chunks)
    assert {chunk.id for chunk in rest} == {first.id}
    assert last.choices[0].finish_reason == "length"
    mortal.until_idle()
    record = mortal.records()[-1]
    assert (record["outcome"], record["resumed"], record["completion_tokens"]) == ("ok", 1, 60)


def test_a_stream_that_cannot_go_on_is_told_so_and_not_ended_as_if_it_were_whole(mortal: Gateway) -> None:
    with OpenAI(base_url=f"{mortal.url}/v1", api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="smol",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            extra_body={"ignore_eos": True, "grammar": 'root ::= ("hello. ")+'},
        )
        chunks = iter(stream)
        assert next(chunks).choices
        kill_engine(mortal)
        with pytest.raises(APIError) as caught:
            assert not any(chunk.choices[0].finish_reason for chunk in chunks)
    assert caught.value.code == "upstream_connection_lost"
    mortal.until_ready()
    mortal.until_idle()
    record = mortal.records()[-1]
    assert (record["status"], record["outcome"], record["estimated"]) == (200, "cut", True)


def test_a_reply_that_loses_its_llama_server_while_it_is_gathered_is_made_again(mortal: Gateway) -> None:
    before = mortal.metric("corral_retries_total")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(mortal.post, CHAT, {**LONG, "max_tokens": 100})
        mortal.until(lambda: mortal.metric("corral_slots_busy") == 1, "busy")
        kill_engine(mortal)
        reply = asked.result()
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 100
    assert mortal.metric("corral_retries_total") > before
    mortal.until_idle()
    assert mortal.records()[-1]["attempts"] > 1


def test_no_llama_server_survives_a_killed_corral(doomed: Gateway) -> None:
    engine = engine_of(doomed)
    assert alive(engine)
    doomed.process.kill()
    doomed.until(lambda: not alive(engine), "without its llama-server")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_neither_child_nor_port(doomed: Gateway, number: signal.Signals) -> None:
    engine = engine_of(doomed)
    assert doomed.stop(number) == 0
    assert not alive(engine)
    with socket.create_server(("127.0.0.1", doomed.port)):
        pass
    assert [event["signal"] for event in doomed.events() if event["event"] == "stopping"] == [number.name]
    assert "Traceback" not in doomed.output


def test_a_stream_that_runs_at_the_signal_is_completed_first(doomed: Gateway) -> None:
    engine = engine_of(doomed)
    body = {**LONG, "max_tokens": 60, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", doomed.url + CHAT, json=body, headers=headers, timeout=PATIENCE_S) as reply:
        lines = reply.iter_lines()
        first = next(lines)
        doomed.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert first.startswith("data: {")
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert doomed.stop() == 0
    assert not alive(engine)
    assert doomed.records()[-1]["outcome"] == "ok"
    assert doomed.records()[-1]["completion_tokens"] == 60
