"""A llama-server that dies with requests in it, and what becomes of them when another takes its place."""

from collections.abc import Iterator

import pytest

from support.fake import FakeLlama
from support.gateway import Gateway
from support.talk import CHAT, DONE, MODES, begin, chat, last_error, post

# So many events come before the end: progress of the prompt, the role, and some tokens.
LATE = 8


@pytest.fixture(scope="module")
def port() -> int:
    """Where the llama-servers of this module listen, one after the other."""
    with FakeLlama() as first:
        return first.port


@pytest.fixture(scope="module")
def gateway(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("mortal")
    with Gateway(directory, check_idle=False, MODEL_UPSTREAMS=f"one=http://127.0.0.1:{port}") as gateway:
        yield gateway
        # Only a successor can show that nothing runs any more.
        with FakeLlama(port=port):
            gateway.until_ready()
            gateway.until_idle()


def test_a_death_in_mid_stream_is_told_and_the_next_request_waits_for_the_successor(
    gateway: Gateway, port: int
) -> None:
    with FakeLlama(f"die,after={LATE}", port=port) as fake:
        assert last_error(post(gateway, CHAT, chat(**MODES["stream"])))["code"] == "upstream_connection_lost"
        fake.process.wait()
    gateway.until(lambda: gateway.get("/health").status_code == 503, "unhealthy")
    with begin(gateway, CHAT, chat(**MODES["stream"])) as client:
        gateway.until(lambda: gateway.metric("corral_queue_waiters") == 1, "waiting")
        with FakeLlama(port=port):
            assert client.receive().events[-1] == DONE
    assert gateway.metric("corral_replica_transitions_total", state="unreachable") >= 1


@pytest.mark.parametrize("mode", ["whole", "gathered"])
def test_a_death_before_the_client_has_anything_is_hidden_by_the_successor(
    gateway: Gateway, port: int, mode: str
) -> None:
    with FakeLlama(f"die,after={LATE}", port=port) as fake:
        gateway.until_ready()
        client = begin(gateway, CHAT, chat(**MODES[mode]))
        fake.process.wait()
    with FakeLlama(port=port), client:
        reply = client.receive()
    assert reply.status == 200
    assert reply.json["usage"]["completion_tokens"] == min(16, MODES[mode]["max_tokens"])
