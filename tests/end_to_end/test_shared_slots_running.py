"""Several running Corrals and one llama-server: one of them is killed, stands still, is reloaded; the Valkey goes."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import Gateway
from support.ports import free_port
from support.services import valkey
from support.talk import CHAT, begin, chat, error_of, post

SLOTS = 2
LEASE_S = 2.0
EVENTS = ("valkey lost", "valkey returned")

Begin = Callable[..., Gateway]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with valkey() as running:
        yield running


@pytest.fixture
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(slots=SLOTS, token_s=0.005) as running:
        yield running


@contextmanager
def corrals(directory: Path, fake: FakeLlama, url: str) -> Iterator[Begin]:
    """What begins one that shares the llama-server with the others of the test."""
    shared = {
        "CORRAL_VALKEY_URL": url,
        "CORRAL_VALKEY_PREFIX": f"test-{uuid4().hex}",
        "CORRAL_VALKEY_LEASE": f"{LEASE_S:g}s",
        "CORRAL_LIMITS_REQUESTS": "0",
        "MODEL_UPSTREAMS": f"one={fake.url}",
    }
    with ExitStack() as stack:

        def start(**settings: str) -> Gateway:
            gateway = stack.enter_context(Gateway(directory, door=Door.LANE, check_idle=True, **(shared | settings)))
            gateway.until_ready()
            return gateway

        yield start


def ask(gateway: Gateway) -> int:
    return post(gateway, CHAT, chat(max_tokens=8, stream=True)).status


def endless() -> dict[str, object]:
    return chat('script:{"count": 100000}', max_tokens=100_000, stream=True)


def test_a_killed_corral_leaves_its_slots_to_the_others_and_nothing_is_ever_deferred(
    tmp_path: Path, fake: FakeLlama, url: str
) -> None:
    with corrals(tmp_path, fake, url) as start, ThreadPoolExecutor(24) as threads:
        first, second, dies = start(), start(), start()
        held = [begin(dies, CHAT, endless()) for _ in range(SLOTS)]
        for each in held:
            each.receive(until=b'"content"')
        asked = [threads.submit(ask, gateway) for gateway in (first, second) for _ in range(12)]
        first.until(lambda: first.metric("corral_slots_elsewhere") == SLOTS, "told of the others' slots")
        dies.process.send_signal(signal.SIGKILL)
        assert [each.result() for each in asked] == [200] * 24
        for each in held:
            each.close()
        assert fake.state()["most_deferred"] == 0
        assert len(first.records()) == len(second.records()) == 12


def test_a_corral_that_is_stopped_gives_its_slots_back_at_once(tmp_path: Path, fake: FakeLlama, url: str) -> None:
    with corrals(tmp_path, fake, url) as start:
        first, second = start(CORRAL_VALKEY_LEASE="10m"), start()
        assert ask(first) == 200
        assert first.stop() == 0
        with begin(second, CHAT, chat(max_tokens=8, n=SLOTS)) as client:
            assert client.receive().status == 200
        assert fake.state()["most_deferred"] == 0


def test_a_corral_that_stood_still_finds_its_grants_gone(tmp_path: Path, fake: FakeLlama, url: str) -> None:
    with corrals(tmp_path, fake, url) as start, ThreadPoolExecutor(8) as threads:
        still, other = start(), start()
        with still.held():
            # It finds them when it goes on.
            late = [threads.submit(ask, still) for _ in range(4)]
            assert [each.result() for each in [threads.submit(ask, other) for _ in range(4)]] == [200] * 4
        assert [each.result() for each in late] == [200] * 4
        assert fake.state()["most_deferred"] == 0


def test_a_server_that_is_taken_out_of_the_settings_is_stated_until_its_calls_have_ended(
    tmp_path: Path, fake: FakeLlama, url: str
) -> None:
    gone = "models: [{name: two, upstream: 'http://127.0.0.1:1'}]"
    file = write_settings(tmp_path, f"models: [{{name: one, upstream: '{fake.url}'}}]")
    with corrals(tmp_path, fake, url) as start:
        reloads, other = start(CORRAL_CONFIG=str(file), MODEL_UPSTREAMS="", CORRAL_VALKEY_LEASE="1s"), start()
        with begin(reloads, CHAT, endless()) as client:
            client.receive(until=b'"content"')
            write_settings(tmp_path, gone)
            reloads.process.send_signal(signal.SIGHUP)
            reloads.until(lambda: any(each["event"] == "settings reloaded" for each in reloads.events()), "reloaded")
            assert ask(other) == 200
            assert other.metric("corral_slots_elsewhere") == 1
            client.receive(until=b'"content"')
        other.until(lambda: ask(other) == 200 and other.metric("corral_slots_elsewhere") == 0, "alone")


@pytest.mark.parametrize("away", ["refuse", "share"])
def test_a_valkey_that_goes_and_comes_back_is_used_again(tmp_path: Path, fake: FakeLlama, away: str) -> None:
    port = free_port()
    with ExitStack() as running:
        url = running.enter_context(valkey(port))
        with corrals(tmp_path, fake, url) as start:
            gateway = start(CORRAL_VALKEY_AWAY=away, CORRAL_VALKEY_CORRALS="2")
            with begin(gateway, CHAT, endless()) as client:
                client.receive(until=b'"content"')
                running.close()
                gateway.until(lambda: told(gateway) == ["valkey lost"], "without Valkey")
                # Half of two slots, which one call has already; or none.
                reply = post(gateway, CHAT, chat(max_tokens=8, n=SLOTS))
                assert (reply.status, error_of(reply)["code"]) == (503, "shared_state_away")
                assert int(reply.headers["retry-after"]) >= 1
                # What runs goes on.
                client.receive(until=b'"content"')
            if away == "share":
                assert ask(gateway) == 200
            with valkey(port):
                gateway.until(lambda: told(gateway) == list(EVENTS), "back")
                assert ask(gateway) == 200
                assert "redis://" not in gateway.output


def told(gateway: Gateway) -> list[str]:
    return [each["event"] for each in gateway.events() if each["event"] in EVENTS]
