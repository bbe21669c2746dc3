"""The fault matrix, processes: a llama-server that dies in the middle, and Corral itself told to end, or killed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.children import fake_engine
from support.door import Door
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import PATIENCE_S, Gateway
from support.matrix import CLOSED_WITHIN_S, Expected, closed_at, ensure_recorded, now
from support.offspring import children_of
from support.raw_client import RawClient, Reply
from support.talk import CHAT, DONE, MODES, begin, chat, last_error, new_id, post, text_of

# So many events come before the end: progress of the prompt, the role, and some tokens.
LATE = 8
LONG = 'script:{"count": 100000}'

# -- a llama-server is killed while it streams -----------------------------------


@pytest.fixture(scope="module")
def port() -> int:
    """Where the llama-servers of this module listen, one after the other."""
    with FakeLlama() as first:
        return first.port


@pytest.fixture(scope="module")
def mortal(door: Door, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("mortal")
    upstreams = f"one=http://127.0.0.1:{port}"
    with Gateway(directory, door=door, check_idle=False, MODEL_UPSTREAMS=upstreams) as gateway:
        yield gateway
        # Only a successor can show that nothing runs any more.
        with FakeLlama(port=port):
            gateway.until_ready()
            gateway.until_idle()


def test_a_death_that_cannot_be_hidden_is_told_and_the_next_request_waits_for_the_successor(
    mortal: Gateway, port: int, cell: Callable[[str, str], None]
) -> None:
    cell("upstream: killed while streaming, under a grammar", "stream")
    request_id = new_id()
    with FakeLlama(f"die,after={LATE}", port=port) as fake:
        mortal.until_ready()
        body = chat(**MODES["stream"], grammar="root ::= x")
        reply = post(mortal, CHAT, body, **{"x-request-id": request_id})
        assert last_error(reply)["code"] == "upstream_connection_lost"
        fake.process.wait()
    ensure_recorded(mortal, request_id, Expected("upstream_connection_lost", outcome="cut", estimated=True))
    mortal.until(lambda: mortal.get("/health").status_code == 503, "unhealthy")
    with begin(mortal, CHAT, chat(**MODES["stream"])) as client:
        mortal.until(lambda: mortal.metric("corral_queue_waiters") == 1, "waiting")
        with FakeLlama(port=port):
            assert client.receive().events[-1] == DONE
    assert mortal.metric("corral_replica_transitions_total", state="unreachable") >= 1


@pytest.mark.parametrize("mode", MODES)
def test_a_death_is_hidden_by_the_successor(
    mortal: Gateway, port: int, mode: str, cell: Callable[[str, str], None]
) -> None:
    cell("upstream: killed while streaming", mode)
    request_id = new_id()
    with FakeLlama(f"die,after={LATE}", port=port) as fake:
        mortal.until_ready()
        client = begin(mortal, CHAT, chat(**MODES[mode]), **{"x-request-id": request_id})
        fake.process.wait()
    with FakeLlama(port=port), client:
        reply = client.receive()
    assert reply.status == 200
    assert len(text_of(reply).split()) == min(16, MODES[mode]["max_tokens"])
    # While nobody answers, an attempt may fail to connect.
    ensure_recorded(mortal, request_id, Expected(attempts=(2, 3)))


# -- Corral ends -----------------------------------------------------------------


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(slots=4) as fake:
        yield fake


def started(door: Door, directory: Path, fake: FakeLlama, **settings: str) -> Gateway:
    fake.reset()
    fake.set(token_s=0.02)
    return Gateway(directory, door=door, check_idle=False, MODEL_UPSTREAMS=f"one={fake.url}", **settings)


def begin_stream(stack: ExitStack, gateway: Gateway, content: str, max_tokens: int) -> tuple[RawClient, Reply]:
    """A stream of which the first token has come."""
    client = stack.enter_context(begin(gateway, CHAT, chat(content, max_tokens=max_tokens, stream=True)))
    return client, client.receive(until=b'"content"')


def rest(client: RawClient, start: Reply) -> Reply:
    more = client.receive(PATIENCE_S)
    return Reply([*start.parts, *more.parts], more.end)


def outcomes(gateway: Gateway) -> list[str]:
    return [record["outcome"] for record in gateway.records()]


def test_sigterm_lets_streams_end(
    door: Door, tmp_path: Path, fake: FakeLlama, cell: Callable[[str, str], None]
) -> None:
    cell("Corral: SIGTERM, streams that end in time", "stream")
    with ExitStack() as stack:
        gateway = stack.enter_context(started(door, tmp_path, fake, CORRAL_SERVER_UNREADY="0s"))
        client, start = begin_stream(stack, gateway, 'script:{"count": 60}', 100)
        gateway.process.send_signal(signal.SIGTERM)
        reply = rest(client, start)
        assert reply.events[-1] == DONE
        assert len(text_of(reply).split()) == 60
        gateway.process.wait(PATIENCE_S)
    assert outcomes(gateway) == ["ok"]
    assert [request["ended"] for request in fake.until_ended(CHAT)] == ["complete"]
    assert "Traceback" not in gateway.output


def test_sigterm_tells_streams_that_do_not_end(
    door: Door, tmp_path: Path, fake: FakeLlama, cell: Callable[[str, str], None]
) -> None:
    cell("Corral: SIGTERM, streams that do not", "stream")
    with ExitStack() as stack:
        settings = {"CORRAL_SERVER_UNREADY": "0s", "CORRAL_SERVER_GRACE": "1s"}
        gateway = stack.enter_context(started(door, tmp_path, fake, **settings))
        client, start = begin_stream(stack, gateway, LONG, 100_000)
        gateway.process.send_signal(signal.SIGTERM)
        reply = rest(client, start)
        ended_at = now()
        assert last_error(reply)["code"] == "shutting_down"
        gateway.process.wait(PATIENCE_S)
    assert outcomes(gateway) == ["cut"]
    assert closed_at(fake, CHAT, 0) <= ended_at + CLOSED_WITHIN_S
    assert [request["ended"] for request in fake.until_ended(CHAT)] == ["client_gone"]


def test_kill_9_leaves_no_connection(
    door: Door, tmp_path: Path, fake: FakeLlama, cell: Callable[[str, str], None]
) -> None:
    cell("Corral: kill -9, connections", "stream")
    with ExitStack() as stack:
        gateway = stack.enter_context(started(door, tmp_path, fake))
        client, start = begin_stream(stack, gateway, LONG, 100_000)
        gateway.process.kill()
        killed_at = now()
        gateway.process.wait(PATIENCE_S)
        reply = rest(client, start)
    assert reply.end in ("fin", "rst")
    assert DONE not in reply.events
    assert closed_at(fake, CHAT, 0) <= killed_at + CLOSED_WITHIN_S
    assert [request["ended"] for request in fake.until_ended(CHAT)] == ["client_gone"]


def test_kill_9_takes_the_llama_servers_along(door: Door, tmp_path: Path, cell: Callable[[str, str], None]) -> None:
    cell("Corral: kill -9, children", "stream")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" + bytes(60))
    file = write_settings(tmp_path, f"models:\n  - name: one\n    file: {model}\n")
    settings = {"LLAMA_SERVER_BIN": str(fake_engine(tmp_path)), "CORRAL_CONFIG": str(file)}
    with ExitStack() as stack:
        gateway = stack.enter_context(Gateway(tmp_path, door=door, check_idle=False, **settings))
        gateway.until_ready()
        begin_stream(stack, gateway, LONG, 100_000)
        children = family(gateway.process.pid)
        assert children
        gateway.process.kill()
        gateway.process.wait(PATIENCE_S)
    gateway.until(lambda: not [pid for pid in children if runs(pid)], "without children")


def family(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    children = children_of(pid)
    return children + [each for child in children for each in family(child)]


def runs(pid: int) -> bool:
    """Whether there is such a process, a zombie aside, which waits only for whoever adopted it."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
