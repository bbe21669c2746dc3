"""What Corral tells: request ids, records, metrics and health, and to whom."""

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.front import Front, Narrow
from support.gateway import Gateway
from support.talk import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MODES,
    chat,
    completion,
    error_of,
    new_id,
    post,
    record_of,
    send_raw,
)

OPERATOR = {"authorization": "Bearer key-of-operator"}
CLIENT = {"authorization": "Bearer local"}
MADE = re.compile(r"req_[0-9a-f]{32}")

# -- request ids -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_request_id_is_returned_logged_and_sent_upstream(front: Front, mode: str) -> None:
    request_id = new_id()
    reply = post(front.gateway, CHAT, chat(**MODES[mode]), **{"x-request-id": request_id})
    assert reply.headers["x-request-id"] == request_id
    assert front.one.requests(CHAT)[0]["headers"]["x-request-id"] == request_id
    assert record_of(front.gateway, request_id)["outcome"] == "ok"


@pytest.mark.parametrize("given", ["", "two words", 'a"quote', "x" * 129, "ключ", "{}", "a,b"])
def test_an_id_that_is_not_fit_to_be_repeated_is_replaced(front: Front, given: str) -> None:
    reply = post(front.gateway, CHAT, chat(max_tokens=8), **{"x-request-id": given})
    made = reply.headers["x-request-id"]
    assert MADE.fullmatch(made)
    assert front.one.requests(CHAT)[0]["headers"]["x-request-id"] == made
    assert record_of(front.gateway, made)["status"] == 200


def test_two_requests_have_two_ids(gateway: Gateway) -> None:
    made = {post(gateway, CHAT, chat(max_tokens=8)).headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5


@pytest.mark.parametrize(
    "line",
    [
        "GET /health",
        "GET /health/live",
        "GET /metrics",
        "GET /v1/models",
        "GET /v1/models/one",
        "GET /v1/models/nobody",
        "GET /docs",
        "GET /openapi.json",
        "GET /nowhere",
        f"GET {CHAT}",
        f"POST {CHAT}",
        f"POST {COMPLETIONS}",
        f"POST {EMBEDDINGS}",
    ],
)
def test_every_answer_has_an_id(gateway: Gateway, line: str) -> None:
    for key in ("Authorization: Bearer local", "Authorization: Bearer wrong"):
        reply = send_raw(gateway, f"{line} HTTP/1.1", "Host: x", key, "Connection: close", "X-Request-Id: an-id")
        assert reply.headers["x-request-id"] == "an-id"
        assert reply.status < 500


# -- records ---------------------------------------------------------------------

FIELDS = {
    "ts", "level", "event", "request_id", "client", "priority", "route", "model", "replica", "route_reason", "stream",
    "status", "outcome", "error_code", "attempts", "resumed", "prompt_tokens", "cached_tokens", "foreseen_tokens",
    "completion_tokens", "estimated", "queue_wait_ms", "ttft_ms", "duration_ms", "bytes_in", "bytes_out",
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_record_tells_the_whole_exchange(front: Front, mode: str) -> None:
    gateway, request_id = front.gateway, new_id()
    reply = post(gateway, CHAT, chat(**MODES[mode]), key="key-of-ann", **{"x-request-id": request_id})
    record = record_of(gateway, request_id)
    assert set(record) == FIELDS
    told = {name: record[name] for name in ("client", "route", "model", "replica", "stream", "status", "outcome")}
    assert told == {
        "client": "ann",
        "route": "chat",
        "model": "one",
        "replica": "one/0",
        "stream": mode == "stream",
        "status": 200,
        "outcome": "ok",
    }
    assert (record["attempts"], record["error_code"], record["estimated"]) == (1, None, False)
    assert record["completion_tokens"] == min(16, MODES[mode]["max_tokens"])
    assert 0 <= record["queue_wait_ms"] <= record["ttft_ms"] <= record["duration_ms"]
    assert record["bytes_out"] == len(reply.body)
    assert record["bytes_in"] > 0


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_counted_whether_the_client_asks_or_not(front: Front, mode: str) -> None:
    gateway, request_id = front.gateway, new_id()
    kinds = ("prompt", "cached", "completion")
    before = {kind: gateway.metric("corral_tokens_total", client="bob", kind=kind) for kind in kinds}
    for _ in range(2):
        post(gateway, CHAT, chat(**MODES[mode]), key="key-of-bob", **{"x-request-id": request_id})
    gateway.until(lambda: len([r for r in gateway.records() if r["request_id"] == request_id]) == 2, "two records")
    records = [record for record in gateway.records() if record["request_id"] == request_id]
    # The second finds the beginning of its prompt where the first left it.
    assert records[0]["cached_tokens"] == 0 < records[1]["cached_tokens"] < records[1]["prompt_tokens"]
    for kind in kinds:
        told = sum(record[f"{kind}_tokens"] for record in records)
        assert gateway.metric("corral_tokens_total", client="bob", kind=kind) == before[kind] + told > before[kind]


# -- metrics ---------------------------------------------------------------------


def test_the_metrics_can_be_read_by_prometheus(gateway: Gateway) -> None:
    post(gateway, CHAT, chat(**MODES["stream"]))
    post(gateway, CHAT, chat(**MODES["stream"]), key="wrong")
    reply = gateway.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    assert {
        "corral_requests",
        "corral_tokens",
        "corral_retries",
        "corral_request_duration_seconds",
        "corral_queue_wait_seconds",
        "corral_time_to_first_token_seconds",
        "corral_inter_token_seconds",
        "corral_exchanges_in_flight",
        "corral_replica_state",
    } <= set(families)
    assert all(family.documentation for family in families.values())
    series = [
        (sample.name, *sorted(sample.labels.items())) for family in families.values() for sample in family.samples
    ]
    assert len(series) == len(set(series))


def test_names_that_clients_make_up_are_no_labels(gateway: Gateway) -> None:
    series = len(gateway.get("/metrics").text.splitlines())
    for i in range(30):
        post(gateway, CHAT, chat(model=f"made-up-{i}"))
        post(gateway, CHAT, chat(user=f"made-up-{i}", max_tokens=0), key=f"made-up-{i}")
        gateway.get(f"/made-up-{i}")
    text = gateway.get("/metrics").text
    assert "made-up" not in text
    # A 401 and a 404 of nobody and of the client, with nothing of theirs.
    assert len(text.splitlines()) <= series + 4


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "via", "x-real-ip"])
def test_metrics_are_the_operators_when_the_request_came_from_afar(gateway: Gateway, name: str) -> None:
    afar = {name: "10.0.0.1"}
    assert gateway.get("/metrics").status_code == 200
    assert gateway.get("/metrics", headers=afar).status_code == 401
    assert gateway.get("/metrics", headers=afar | CLIENT).status_code == 403
    assert gateway.get("/metrics", headers=afar | OPERATOR).status_code == 200


# -- health and models -----------------------------------------------------------


def test_health_tells_the_models_and_only_the_operator_where_they_are(front: Front) -> None:
    gateway = front.gateway
    told = gateway.get("/health")
    assert (told.status_code, told.json()["status"]) == (200, "ok")
    models: dict[str, Any] = told.json()["models"]
    assert {name: model["ready"] for name, model in models.items()} == {"one": True, "two": True, "away": False}
    assert "cannot be reached" in models["away"]["reason"]
    for headers in ({}, CLIENT, {"authorization": "Bearer wrong"}):
        text = gateway.get("/health", headers=headers).text
        assert "127.0.0.1" not in text
        assert str(front.one.port) not in text
    (replica,) = gateway.get("/health", headers=OPERATOR).json()["models"]["one"]["replicas"]
    assert replica["address"] == f"127.0.0.1:{front.one.port}"


def test_health_says_no_with_the_reason_and_the_process_lives(narrow: Narrow) -> None:
    gateway = narrow.gateway
    narrow.fake.fault("reset", path="*")
    gateway.until(lambda: gateway.get("/health").status_code == 503, "unhealthy")
    told = gateway.get("/health").json()
    assert told["status"] == "unavailable"
    assert "cannot be reached" in told["models"]["one"]["reason"]
    assert gateway.get("/health/live").status_code == 200


def test_models_are_listed_and_found_by_name(front: Front) -> None:
    listed = front.gateway.get("/v1/models", headers=CLIENT).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["one", "two", "away"]
    for model in listed["data"]:
        assert {"id", "object", "created", "owned_by"} <= set(model)
        assert front.gateway.get(f"/v1/models/{model['id']}", headers=CLIENT).json() == model
    assert listed["data"][0]["context_length"] == 4096


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_a_model_that_does_not_exist_is_a_404_that_names_those_that_do(front: Front, path: str) -> None:
    body = {"model": "nobody", "messages": chat()["messages"], "prompt": "x", "input": "x"}
    reply = post(front.gateway, path, body)
    error = error_of(reply)
    assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert all(f"'{name}'" in error["message"] for name in ("nobody", "one", "two", "away"))
    assert front.gateway.get("/v1/models/nobody", headers=CLIENT).status_code == 404


def test_the_name_in_the_reply_is_the_one_that_was_asked_for(gateway: Gateway) -> None:
    whole = post(gateway, COMPLETIONS, completion(max_tokens=8)).json
    stream = post(gateway, CHAT, chat(max_tokens=30, stream=True, stream_options={"include_usage": True})).chunks
    assert {whole["model"], *(chunk["model"] for chunk in stream)} == {"one"}
    assert post(gateway, EMBEDDINGS, {"model": "one", "input": "x"}).json["model"] == "one"
