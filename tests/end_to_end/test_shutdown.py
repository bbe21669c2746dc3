"""The end of Corral: what was begun is finished within the grace, what cannot be is told so, and nothing is left."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import until_waiting
from support.gateway import PATIENCE_S, Gateway
from support.raw_client import RawClient, Reply
from support.talk import CHAT, DONE, begin, chat, error_of, last_error, text_of

LONG = 'script:{"count": 100000}'


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(slots=1) as fake:
        yield fake


def started(directory: Path, fake: FakeLlama, **settings: str) -> Gateway:
    fake.reset()
    fake.set(token_s=0.02)
    return Gateway(directory, door=Door.LANE, check_idle=False, MODEL_UPSTREAMS=f"one={fake.url}", **settings)


def begin_stream(stack: ExitStack, gateway: Gateway, content: str, max_tokens: int) -> tuple[RawClient, Reply]:
    """A stream of which the first token has come."""
    body = chat(content, max_tokens=max_tokens, stream=True)
    client = stack.enter_context(begin(gateway, CHAT, body))
    return client, client.receive(until=b'"content"')


def rest(client: RawClient, start: Reply) -> Reply:
    return Reply([*start.parts, *client.receive(PATIENCE_S).parts])


def outcomes(gateway: Gateway) -> list[str]:
    return sorted(record["outcome"] for record in gateway.records())


def test_what_runs_and_what_waits_is_finished(tmp_path: Path, fake: FakeLlama) -> None:
    with ExitStack() as stack:
        gateway = stack.enter_context(started(tmp_path, fake, CORRAL_SERVER_UNREADY="2s"))
        running, start = begin_stream(stack, gateway, 'script:{"count": 150}', 200)
        bodies = [chat("gathered", max_tokens=30), chat("streamed", max_tokens=30, stream=True)]
        waiting = [stack.enter_context(begin(gateway, CHAT, body)) for body in bodies]
        until_waiting(gateway, 2)
        gateway.process.send_signal(signal.SIGTERM)
        # Load balancers are told first, and what comes meanwhile is still served.
        gateway.until(lambda: gateway.get("/health").status_code == 503, "stopping")
        assert gateway.get("/health").json()["status"] == "stopping"
        late = stack.enter_context(begin(gateway, CHAT, chat("late", max_tokens=8)))
        stream = rest(running, start)
        gathered, streamed, last = (client.receive(PATIENCE_S) for client in (*waiting, late))
        assert stream.events[-1] == streamed.events[-1] == DONE
        assert len(text_of(stream).split()) == 150
        assert (gathered.status, last.status) == (200, 200)
        assert gateway.process.wait(PATIENCE_S) == 0
    assert outcomes(gateway) == ["ok"] * 4
    assert "stopping" in [event["event"] for event in gateway.events()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, fake: FakeLlama, number: signal.Signals) -> None:
    with ExitStack() as stack:
        # Longer than this test waits.
        gateway = stack.enter_context(started(tmp_path, fake, CORRAL_SERVER_GRACE="1h"))
        client, start = begin_stream(stack, gateway, LONG, 100_000)
        gateway.process.send_signal(number)
        gateway.until(lambda: "stopping" in gateway.output, "stopping")
        gateway.process.send_signal(number)
        assert gateway.process.wait(PATIENCE_S) == 0
        assert last_error(rest(client, start))["code"] == "shutting_down"
    assert outcomes(gateway) == ["cut"]
    assert [request["ended"] for request in fake.until_ended(CHAT)] == ["client_gone"]


def test_after_the_grace_everybody_is_told(tmp_path: Path, fake: FakeLlama) -> None:
    with ExitStack() as stack:
        gateway = stack.enter_context(started(tmp_path, fake, CORRAL_SERVER_GRACE="1s"))
        client, start = begin_stream(stack, gateway, LONG, 100_000)
        waiting = [
            stack.enter_context(begin(gateway, CHAT, chat(max_tokens=30, stream=stream))) for stream in (False, True)
        ]
        until_waiting(gateway, 2)
        gateway.process.send_signal(signal.SIGTERM)
        assert last_error(rest(client, start))["code"] == "shutting_down"
        for reply in (each.receive(PATIENCE_S) for each in waiting):
            assert (reply.status, error_of(reply)["code"]) == (503, "shutting_down")
        assert gateway.process.wait(PATIENCE_S) == 0
    assert outcomes(gateway) == ["cut", "unavailable", "unavailable"]
    assert [request["ended"] for request in fake.until_ended(CHAT)] == ["client_gone"]
    assert "Traceback" not in gateway.output
    assert not [event for event in gateway.events() if "exception" in event]


def test_an_idle_corral_ends_with_its_idle_connections(tmp_path: Path, fake: FakeLlama) -> None:
    with started(tmp_path, fake) as gateway, RawClient(gateway.port) as client:
        assert client.whole("GET", "/health/live").status == 200
        assert gateway.stop() == 0
        assert client.receive().end == "fin"
        with pytest.raises(ConnectionRefusedError):
            RawClient(gateway.port)
