"""What is counted, and how it reads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from corral.core.call import Endpoint
from corral.core.lifecycle import State, Transition
from corral.core.limits import Limit
from corral.core.record import Outcome, Record
from corral.core.usage import Usage
from corral.observe.labels import LIMIT
from corral.observe.metrics import CONTENT_TYPE, Metrics
from corral.observe.readings import Instrument, Reading, replica_state

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"

CHAT = {"route": "chat", "model": "llama"}
TEAM = {"model": "llama", "client": "team_a"}


def served(endpoint: Endpoint = Endpoint.CHAT, model: str = "llama", client: str = "team_a") -> Record:
    """A streamed exchange that went well: 0.5 s in the queue, first token after 2 s, 21 tokens in 4 s more."""
    return Record(
        "req_1",
        endpoint,
        opened_at=100.0,
        opened_unix_s=1.7e9,
        client=client,
        model=model,
        replica="llama-0",
        stream=True,
        status=200,
        outcome=Outcome.OK,
        attempts=1,
        queued_at=100.0,
        leased_at=100.5,
        first_byte_at=102.0,
        last_token_at=106.0,
        closed_at=106.5,
        usage=Usage(prompt_tokens=30, cached_tokens=10, completion_tokens=21),
        token_events=9,
    )


def refused(status: int, outcome: Outcome, client: str = "") -> Record:
    """An exchange that ended before anything ran."""
    return Record(
        "req_2",
        Endpoint.CHAT,
        opened_at=100.0,
        opened_unix_s=1.7e9,
        client=client,
        status=status,
        outcome=outcome,
        closed_at=100.001,
    )


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels, among others; 0 when there is none."""
    return sum(v for n, given, v in samples(metrics) if n == name and labels.items() <= given.items())


def observed(*records: Record) -> Metrics:
    metrics = Metrics()
    for record in records:
        metrics.observe(record)
    return metrics


def test_an_exchange_is_counted_by_route_model_client_status_and_outcome() -> None:
    metrics = observed(served(), served(), refused(401, Outcome.REFUSED), refused(429, Outcome.LIMITED, "team_a"))
    told = {
        tuple(sorted(labels.values())): v for name, labels, v in samples(metrics) if name == "corral_requests_total"
    }
    assert told == {
        tuple(sorted(("chat", "llama", "team_a", "200", "ok"))): 2,
        tuple(sorted(("chat", "none", "none", "401", "refused"))): 1,
        tuple(sorted(("chat", "none", "team_a", "429", "limited"))): 1,
    }


def test_tokens_are_counted_by_kind() -> None:
    metrics = observed(served(), served())
    kinds = {
        kind: value(metrics, "corral_tokens_total", **TEAM, kind=kind) for kind in ("prompt", "cached", "completion")
    }
    assert kinds == {"prompt": 60, "cached": 20, "completion": 42}
    assert value(metrics, "corral_estimated_usage_total") == 0


def test_what_limits_refuse_is_counted_apart_from_what_they_would() -> None:
    metrics = Metrics()
    metrics.limited(Limit.TOKENS, False)
    metrics.limited(Limit.IN_FLIGHT, True)
    metrics.limited(Limit.IN_FLIGHT, True)
    assert value(metrics, "corral_limited_total", limit="tokens") == value(metrics, "corral_limited_total") == 1
    assert value(metrics, "corral_limit_shadowed_total", limit="in_flight") == 2


def test_what_was_foreseen_of_the_cache_is_counted_beside_what_was_there() -> None:
    foreseen = served()
    foreseen.foreseen_tokens = 15
    # Nobody looked, as there was nothing to choose.
    metrics = observed(foreseen, served())
    kinds = {kind: value(metrics, "corral_prefix_tokens_total", kind=kind) for kind in ("foreseen", "cached", "prompt")}
    assert kinds == {"foreseen": 15, "cached": 10, "prompt": 30}


@pytest.mark.parametrize("outcome", [Outcome.CUT, Outcome.CLIENT_GONE, Outcome.ABORTED])
def test_tokens_of_a_cut_stream_are_counted_and_marked_as_estimated(outcome: Outcome) -> None:
    record = served()
    record.outcome = outcome
    record.usage = Usage(prompt_tokens=30, completion_tokens=7, estimated=True)
    metrics = observed(record)
    assert value(metrics, "corral_tokens_total", **TEAM, kind="completion") == 7
    assert value(metrics, "corral_estimated_usage_total", **TEAM) == 1
    assert value(metrics, "corral_requests_total", outcome=outcome.value) == 1


@pytest.mark.parametrize(
    ("name", "total_s", "bound"),
    [
        ("corral_request_duration_seconds", 6.5, "10.24"),
        ("corral_queue_wait_seconds", 0.5, "0.64"),
        ("corral_time_to_first_token_seconds", 2.0, "2.5"),
        ("corral_inter_token_seconds", 0.2, "0.2"),
    ],
)
def test_the_times_of_an_exchange_are_in_their_histograms(name: str, total_s: float, bound: str) -> None:
    metrics = observed(served())
    assert value(metrics, f"{name}_count", **CHAT) == 1
    assert value(metrics, f"{name}_sum", **CHAT) == pytest.approx(total_s)
    buckets = {labels["le"]: v for n, labels, v in samples(metrics) if n == f"{name}_bucket"}
    assert min((float(le) for le, v in buckets.items() if v == 1), default=None) == float(bound)
    assert buckets["+Inf"] == 1
    assert list(buckets.values()) == sorted(buckets.values())


def test_a_duration_beyond_the_last_bound_is_counted() -> None:
    record = served()
    record.closed_at = 100.0 + 5000
    metrics = observed(record)
    assert value(metrics, "corral_request_duration_seconds_bucket", le="+Inf") == 1
    assert value(metrics, "corral_request_duration_seconds_bucket", le="2621.44") == 0


def test_what_never_ran_does_not_blur_the_times_of_what_did() -> None:
    metrics = observed(*(refused(429, Outcome.LIMITED, "team_a") for _ in range(50)), served())
    assert value(metrics, "corral_request_duration_seconds_count") == 1
    assert value(metrics, "corral_time_to_first_token_seconds_count") == 1


def test_a_call_that_waited_in_vain_counts_in_the_queue_only() -> None:
    record = refused(503, Outcome.UNAVAILABLE, "team_a")
    record.queued_at, record.closed_at = 100.0, 160.0
    metrics = observed(record)
    assert value(metrics, "corral_queue_wait_seconds_sum") == 60.0
    assert value(metrics, "corral_request_duration_seconds_count") == 0
    assert value(metrics, "corral_upstream_attempts_total") == 0


def test_embeddings_have_no_first_token() -> None:
    metrics = observed(served(Endpoint.EMBEDDINGS))
    assert value(metrics, "corral_time_to_first_token_seconds_count") == 0
    assert value(metrics, "corral_request_duration_seconds_count", route="embeddings") == 1


def test_attempts_and_retries_are_counted() -> None:
    record = served()
    record.attempts = 3
    metrics = observed(record)
    metrics.retry("llama", "upstream_unreachable")
    metrics.retry("llama", "model_loading")
    assert value(metrics, "corral_upstream_attempts_total", model="llama") == 3
    assert value(metrics, "corral_retries_total", model="llama", reason="model_loading") == 1
    assert value(metrics, "corral_retries_total") == 2


def test_transitions_are_counted_by_the_state_they_lead_to() -> None:
    metrics = Metrics()
    for old, new in [(State.UNKNOWN, State.LOADING), (State.LOADING, State.READY), (State.READY, State.BACKOFF)]:
        metrics.transition(Transition("llama-0", "llama", old, new, "", 1.7e9))
    replica = {"model": "llama", "replica": "llama-0"}
    counts = {
        state: value(metrics, "corral_replica_transitions_total", **replica, state=state.value) for state in State
    }
    assert {state for state, count in counts.items() if count} == {State.LOADING, State.READY, State.BACKOFF}
    assert sum(counts.values()) == 3


def test_gauges_are_asked_for_at_every_scrape() -> None:
    metrics, waiting = Metrics(), {"llama": 2, "gemma": 0}
    metrics.pull(lambda: (Reading(Instrument.WAITERS, n, (model, "default")) for model, n in waiting.items()))
    assert value(metrics, "corral_queue_waiters", model="llama") == 2
    waiting["llama"] = 0
    assert value(metrics, "corral_queue_waiters", model="llama") == 0


def test_a_replica_is_in_exactly_one_state() -> None:
    metrics = Metrics()
    metrics.pull(lambda: replica_state("llama", "llama-0", State.READY))
    metrics.pull(lambda: replica_state("gemma", "gemma-0", State.FAILED))
    states = {
        (labels["replica"], labels["state"]): v for n, labels, v in samples(metrics) if n == "corral_replica_state"
    }
    assert {key for key, v in states.items() if v} == {("llama-0", "ready"), ("gemma-0", "failed")}
    assert len(states) == 2 * len(State)


def test_a_label_has_at_most_a_thousand_values_and_other() -> None:
    metrics = observed(*(served(client=f"client-{n}") for n in range(LIMIT + 500)))
    clients = {labels["client"] for n, labels, _ in samples(metrics) if n == "corral_requests_total"}
    assert len(clients) == LIMIT + 1
    assert value(metrics, "corral_requests_total", client="other") == 500
    assert value(metrics, "corral_tokens_total", client="other", kind="prompt") == 500 * 30


def test_a_client_cannot_write_metrics_through_a_name() -> None:
    name = 'a",status="200"} 1\ncorral_fake_total 7\n'
    metrics = observed(served(client=name))
    assert value(metrics, "corral_requests_total", client=name) == 1
    assert not [n for n, _, _ in samples(metrics) if n == "corral_fake_total"]


def test_two_sets_of_metrics_do_not_share_anything() -> None:
    observed(served())
    assert value(Metrics(), "corral_requests_total") == 0


def test_build_and_process_are_told_from_the_start() -> None:
    names = {name for name, _, _ in samples(Metrics())}
    assert {"corral_build_info", "process_cpu_seconds_total", "process_open_fds"} <= names
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def documented() -> dict[str, set[str]]:
    """Names and labels in the tables of the documentation."""
    rows = re.findall(r"^\| `((?:corral|process)_\w+)` \|([^|]*)\|", DOCS.read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_every_metric_and_its_labels_are_documented_and_nothing_else_is() -> None:
    metrics = observed(served())
    metrics.retry("llama", "model_loading")
    metrics.transition(Transition("llama-0", "llama", State.LOADING, State.READY, "", 1.7e9))
    metrics.late(0.0)
    metrics.limited(Limit.TOKENS, False)
    metrics.limited(Limit.TOKENS, True)
    estimated = served()
    estimated.usage = Usage(estimated=True)
    estimated.foreseen_tokens = 0
    estimated.resumed = ("upstream_connection_lost",)
    metrics.observe(estimated)
    metrics.pull(lambda: (Reading(each, 1, tuple("x" * len(each.labels))) for each in Instrument))
    told: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        told[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert documented() == told


def test_every_metric_in_the_documentations_queries_exists() -> None:
    queries = "\n".join(re.findall(r"```promql\n(.*?)```", DOCS.read_text(), re.DOTALL))
    used = set(re.findall(r"\b(?:corral|process)_\w+", queries))
    assert len(used) > 5
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} <= set(documented())
