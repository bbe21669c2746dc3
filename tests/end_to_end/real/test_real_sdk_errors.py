"""Each error reaches the official SDK as the class that applications catch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletionMessageParam

from support.embedded_engine import EmbeddedEngine
from support.gateway import KEY, Gateway
from support.ports import free_port

pytestmark = pytest.mark.engine

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
BRIEF: dict[str, Any] = {"model": "smol", "messages": HELLO, "max_tokens": 1}


def client_of(gateway: Gateway, *, key: str = KEY, retries: int = 0) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=retries)


@pytest.fixture(scope="module")
def two_models(engine: EmbeddedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    upstreams = f"first={engine.url},second={engine.url}"
    with Gateway(tmp_path_factory.mktemp("two"), MODEL_UPSTREAMS=upstreams) as gateway:
        gateway.until_ready()
        yield gateway


@pytest.fixture
def limited(engine: EmbeddedEngine, tmp_path: Path) -> Iterator[Gateway]:
    """One request in any two seconds."""
    with Gateway(
        tmp_path, MODEL_UPSTREAMS=f"smol={engine.url}", CORRAL_LIMITS_REQUESTS="1", CORRAL_LIMITS_WINDOW="2s"
    ) as gateway:
        gateway.until_ready()
        yield gateway


def test_a_wrong_key_is_an_authentication_error(corral: Gateway) -> None:
    with client_of(corral, key="wrong") as client:
        for ask in (lambda: client.chat.completions.create(**BRIEF), client.models.list):
            with pytest.raises(AuthenticationError) as caught:
                ask()
            assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
            assert caught.value.request_id


def test_an_unknown_model_is_not_found_and_those_there_are_are_named(two_models: Gateway) -> None:
    with client_of(two_models) as client:
        with pytest.raises(NotFoundError) as caught:
            client.chat.completions.create(**BRIEF | {"model": "third"})
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert "'first', 'second'" in caught.value.message
        with pytest.raises(NotFoundError) as caught:
            client.models.retrieve("third")
        assert caught.value.code == "model_not_found"
        assert client.chat.completions.create(**BRIEF | {"model": "second"}).model == "second"


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "horse " * 1500}]}, "messages", "context_length_exceeded"),
        ({"n": 3}, "n", "invalid_value"),
    ],
)
def test_a_wrong_parameter_is_a_bad_request_that_names_it(
    corral: Gateway, wrong: dict[str, Any], param: str, code: str
) -> None:
    with client_of(corral, retries=2) as client, pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**BRIEF | wrong)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    corral.until(lambda: caught.value.request_id in [record["request_id"] for record in corral.records()], "recorded")


def test_a_body_that_is_too_large_is_told_so(engine: EmbeddedEngine, tmp_path: Path) -> None:
    with (
        Gateway(tmp_path, MODEL_UPSTREAMS=f"smol={engine.url}", CORRAL_SERVER_BODY_SIZE="1KiB") as gateway,
        client_of(gateway) as client,
        pytest.raises(APIStatusError) as caught,
    ):
        client.completions.create(model="smol", prompt="horse " * 1000)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_a_limit_is_a_rate_limit_error_that_says_when_to_come_back(limited: Gateway) -> None:
    with client_of(limited) as client:
        client.chat.completions.create(**BRIEF)
        with pytest.raises(RateLimitError) as caught:
            client.chat.completions.create(**BRIEF)
    headers = caught.value.response.headers
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert int(headers["retry-after"]) >= 1
    assert 0 < int(headers["retry-after-ms"]) <= 2000
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")


def test_the_sdk_comes_back_when_it_was_told_to_and_is_answered(limited: Gateway) -> None:
    with client_of(limited, retries=1) as client:
        client.chat.completions.create(**BRIEF)
        reply = client.chat.completions.with_raw_response.create(**BRIEF)
    assert reply.retries_taken == 1
    limited.until(lambda: len(limited.records()) == 3, "done")
    assert [record["outcome"] for record in limited.records()] == ["ok", "limited", "ok"]


def test_a_model_that_nobody_serves_is_an_internal_server_error(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with (
        Gateway(tmp_path, MODEL_UPSTREAMS=f"smol={nobody}", CORRAL_QUEUE_UNREADY_PATIENCE="100ms") as gateway,
        client_of(gateway) as client,
        pytest.raises(InternalServerError) as caught,
    ):
        client.chat.completions.create(**BRIEF)
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_ready")
    assert int(caught.value.response.headers["retry-after"]) >= 1
