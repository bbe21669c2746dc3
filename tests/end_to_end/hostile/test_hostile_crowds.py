"""More connections than there may be, and more than there are files for."""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.gateway import Gateway
from support.raw_client import RawClient
from support.spelled import HEALTH, answers_of, asked, ended, posted
from support.talk import CHAT, chat, post

LIMIT = 20
FILES = 256
CROWD = 400


@contextmanager
def served(directory: Path, **settings: str) -> Iterator[tuple[Gateway, FakeLlama]]:
    with FakeLlama(slots=4) as fake:
        settings |= {"MODEL_UPSTREAMS": f"one={fake.url}", "CORRAL_LIMITS_REQUESTS": "0"}
        gateway = Gateway(directory, door=Door.LANE, check_idle=True, **settings)
        # It looks at this when it begins to listen, which takes Python a while.
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        with gateway:
            gateway.until_ready()
            yield gateway, fake


def health(client: RawClient) -> int:
    """The status that an open connection still gets."""
    client.socket.sendall(HEALTH)
    (answer,) = answers_of(client.receive(until=b"}"))
    return answer.status


def warnings(gateway: Gateway) -> list[dict[str, Any]]:
    return [event for event in gateway.events() if event["level"] == "warning"]


@pytest.mark.parametrize("request_", [b"", posted()])
def test_a_connection_too_many_is_told_and_those_that_are_there_go_on(tmp_path: Path, request_: bytes) -> None:
    with served(tmp_path, CORRAL_SERVER_CONNECTIONS=str(LIMIT)) as (gateway, fake), ExitStack() as stack:
        clients = [stack.enter_context(RawClient(gateway.port)) for _ in range(LIMIT)]
        assert [health(client) for client in clients] == [200] * LIMIT
        for _ in range(3):
            with RawClient(gateway.port) as late:
                late.socket.sendall(request_)
                (answer,) = ended(late)
            assert (answer.status, answer.code, answer.closes) == (503, "too_many_connections", True)
            assert answer.headers["retry-after"] == "1"
        assert fake.requests(CHAT) == []
        clients[0].socket.sendall(asked("hello", "Connection: close"))
        assert [answer.status for answer in ended(clients[0])] == [200]
        clients[0].close()
        gateway.until(lambda: admitted(gateway), "room for one more")
        assert [event["event"] for event in warnings(gateway)][:1] == ["too many connections"]


def test_a_crowd_leaves_files_for_the_llama_servers(tmp_path: Path) -> None:
    with served(tmp_path, CORRAL_RETRIES_ATTEMPTS="1") as (gateway, fake), ExitStack() as stack:
        clients = crowd(gateway, stack)
        # They run at the same time, and each needs a connection of its own to the llama-server.
        fake.set(token_s=0.03)
        for client in clients[:3]:
            client.socket.sendall(asked("hello", "Connection: close", stream=True))
        assert [[answer.status for answer in ended(client)] for client in clients[:3]] == [[200]] * 3
        assert health(clients[FILES // 2 - 1]) == 200
        stack.close()
        gateway.until(lambda: admitted(gateway), "open again")


def test_when_there_are_no_files_left_it_goes_on_as_soon_as_there_are(tmp_path: Path) -> None:
    with served(tmp_path, CORRAL_SERVER_CONNECTIONS=str(10 * CROWD)) as (gateway, _), ExitStack() as stack:
        clients = crowd(gateway, stack)
        assert health(clients[0]) == 200
        stack.close()
        gateway.until(lambda: admitted(gateway), "open again")
        gateway.until(lambda: post(gateway, CHAT, chat(max_tokens=8)).status == 200, "serving again")


def crowd(gateway: Gateway, stack: ExitStack) -> list[RawClient]:
    """More clients than there are files; they say nothing."""
    return [stack.enter_context(RawClient(gateway.port)) for _ in range(CROWD)]


def admitted(gateway: Gateway) -> bool:
    """A new connection is served."""
    try:
        with RawClient(gateway.port) as client:
            return health(client) == 200
    except (AssertionError, ConnectionError):
        return False
