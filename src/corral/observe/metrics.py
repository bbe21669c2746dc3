"""What happened, counted for Prometheus; the only file that knows its library.

Everything here is bounded: models, clients and replicas come from the
configuration, and labels.py cuts off what would still grow.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from corral.core.call import Endpoint
from corral.core.lifecycle import Transition
from corral.core.limits import Limit
from corral.core.record import Record
from corral.observe import event_loop
from corral.observe.footprint import footprint
from corral.observe.labels import NONE, Bounded
from corral.observe.readings import Instrument, Reading, Source

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The OpenTelemetry lists for generative models. The first two go on from where
# OpenTelemetry stops: a prompt on a CPU takes minutes, a generation up to an
# hour, and a histogram says nothing of what lies above its last bound.
DURATION_BOUNDS_S = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    *(163.84, 327.68, 655.36, 1310.72, 2621.44),
)
FIRST_TOKEN_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0),
)
# From what nobody sees to what makes a load balancer give up.
LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
INTER_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

Labels = tuple[str, ...]
TIMED: Labels = ("route", "model")


class Count:
    """A number for each combination of label values; it only grows. One writer: Metrics.

    A dictionary of numbers instead of the library's counters takes a third of
    their time (measured), and every exchange pays it ten times.
    """

    def __init__(self, name: str, meaning: str, labels: Labels) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = labels
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def family(self) -> Metric:
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        return family


class Distribution:
    """A histogram for each combination of label values. One writer: Metrics."""

    def __init__(self, name: str, meaning: str, labels: Labels, bounds_s: Sequence[float]) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = labels
        self._bounds_s = bounds_s
        # The numbers between the bounds (and above the last), then the sum of all values.
        self._cells: dict[Labels, tuple[list[int], list[float]]] = {}

    def add(self, labels: Labels, value_s: float) -> None:
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = ([0] * (len(self._bounds_s) + 1), [0.0])
        cell[0][bisect_left(self._bounds_s, value_s)] += 1
        cell[1][0] += value_s

    def family(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, (counts, total) in list(self._cells.items()):
            family.add_metric(labels, buckets=self._cumulated(counts), sum_value=total[0])
        return family

    def _cumulated(self, counts: list[int]) -> list[tuple[str, float]]:
        bounds = (*(str(bound) for bound in self._bounds_s), "+Inf")
        return list(zip(bounds, accumulate(counts), strict=True))


class Metrics(Collector):
    """Every metric of this process, in a registry of its own. One writer: itself, from facts handed to it."""

    def __init__(self) -> None:
        per_client = ("model", "client")
        self._requests = Count(
            "corral_requests_total", "Exchanges that ended.", ("route", "model", "client", "status", "outcome")
        )
        self._tokens = Count("corral_tokens_total", "Tokens read and written.", (*per_client, "kind"))
        self._estimated = Count("corral_estimated_usage_total", "Exchanges with estimated tokens.", per_client)
        self._prefixes = Count(
            "corral_prefix_tokens_total", "Tokens of prompts that a replica was chosen for.", ("model", "kind")
        )
        self._attempts = Count("corral_upstream_attempts_total", "Attempts at replicas.", ("model",))
        self._retries = Count("corral_retries_total", "Attempts that were repeated.", ("model", "reason"))
        self._resumed = Count("corral_resumed_total", "Answers that went on elsewhere.", ("model", "reason"))
        self._limited = Count("corral_limited_total", "Requests that a limit refused.", ("limit",))
        self._shadowed = Count(
            "corral_limit_shadowed_total", "Requests that a limit which only reports would have refused.", ("limit",)
        )
        self._transitions = Count(
            "corral_replica_transitions_total", "Changes into a state.", ("model", "replica", "state")
        )
        self._duration = Distribution(
            "corral_request_duration_seconds", "From arrival to the end of the answer.", TIMED, DURATION_BOUNDS_S
        )
        self._queue_wait = Distribution("corral_queue_wait_seconds", "Waiting for a slot.", TIMED, DURATION_BOUNDS_S)
        self._first_token = Distribution(
            "corral_time_to_first_token_seconds",
            "From arrival to the first event of the reply.",
            TIMED,
            FIRST_TOKEN_BOUNDS_S,
        )
        self._inter_token = Distribution(
            "corral_inter_token_seconds", "Mean time between two tokens of an exchange.", TIMED, INTER_TOKEN_BOUNDS_S
        )
        self._lag = Distribution(
            "corral_event_loop_lag_seconds", "How late the event loop calls what is due.", (), LAG_BOUNDS_S
        )
        self._facts = (
            *(self._requests, self._tokens, self._estimated, self._prefixes),
            *(self._attempts, self._retries, self._resumed, self._transitions),
            *(self._limited, self._shadowed),
        )
        self._times = (self._duration, self._queue_wait, self._first_token, self._inter_token, self._lag)
        self._model, self._client, self._replica = Bounded(), Bounded(), Bounded()
        self._status, self._reason = Bounded(), Bounded()
        self._sources: list[Source] = [footprint(), event_loop.tasks]
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, record: Record) -> None:
        """Count an exchange that has been closed, once."""
        route = record.endpoint.label
        model, client = self._model(record.model), self._client(record.client)
        self._requests.add((route, model, client, self._status(str(record.status)), record.outcome.label))
        self._count_tokens(record, model, client)
        timed = (route, model)
        if (queue_wait_s := record.queue_wait_s) is not None:
            self._queue_wait.add(timed, queue_wait_s)
        if record.attempts:
            self._attempts.add((model,), record.attempts)
            # What was refused before it ran took no time, and would hide the time of what ran.
            self._duration.add(timed, record.duration_s)
        for reason in record.resumed:
            self._resumed.add((model, self._reason(reason)))
        if record.endpoint is not Endpoint.EMBEDDINGS:
            self._time_tokens(record, timed)

    def transition(self, transition: Transition) -> None:
        """Count a replica's change of state."""
        labels = (self._model(transition.model), self._replica(transition.replica), transition.new.value)
        self._transitions.add(labels)

    def retry(self, model: str, reason: str) -> None:
        """Count an attempt that is going to be repeated; ``reason`` is the code of the error it ended in."""
        self._retries.add((self._model(model), self._reason(reason)))

    def limited(self, limit: Limit, shadow: bool) -> None:
        """Count that a limit has refused a request, or would have if it did not only report."""
        (self._shadowed if shadow else self._limited).add((limit.value,))

    def late(self, lag_s: float) -> None:
        """Count that the event loop was late by so much, or by nothing."""
        self._lag.add((), lag_s)

    def pull(self, source: Source) -> None:
        """Ask ``source`` at every scrape for what is true then."""
        self._sources.append(source)

    def render(self) -> bytes:
        """All metrics in Prometheus's text format; its type is CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry: every family, those without a value yet included."""
        yield from (kept.family() for kept in (*self._facts, *self._times))
        yield from _families(reading for source in self._sources for reading in source())

    def _count_tokens(self, record: Record, model: str, client: str) -> None:
        usage = record.usage
        if usage.prompt_tokens:
            self._tokens.add((model, client, "prompt"), usage.prompt_tokens)
        if usage.cached_tokens:
            self._tokens.add((model, client, "cached"), usage.cached_tokens)
        if usage.completion_tokens:
            self._tokens.add((model, client, "completion"), usage.completion_tokens)
        if record.foreseen_tokens is not None:
            self._prefixes.add((model, "foreseen"), record.foreseen_tokens)
            self._prefixes.add((model, "cached"), usage.cached_tokens)
            self._prefixes.add((model, "prompt"), usage.prompt_tokens)
        if usage.estimated:
            self._estimated.add((model, client))

    def _time_tokens(self, record: Record, timed: Labels) -> None:
        if (ttft_s := record.ttft_s) is not None:
            self._first_token.add(timed, ttft_s)
        if (inter_token_s := record.inter_token_s) is not None:
            self._inter_token.add(timed, inter_token_s)


def _families(readings: Iterable[Reading]) -> Iterable[Metric]:
    families: dict[Instrument, CounterMetricFamily | GaugeMetricFamily] = {}
    for instrument in Instrument:
        kind = CounterMetricFamily if instrument.metric.endswith("_total") else GaugeMetricFamily
        families[instrument] = kind(instrument.metric, instrument.meaning, labels=instrument.labels)
    for reading in readings:
        families[reading.instrument].add_metric([value or NONE for value in reading.labels], reading.value)
    return families.values()
