"""What a load test found: figures, a table, JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from corral.load.plan import Plan

PERCENTS = (50, 90, 99)


@dataclass(slots=True)
class Sample:
    """One request, its times counted from its start. Writer: ``ask``.

    ``status`` is 0 when no answer came, ``error`` is empty when it succeeded.
    """

    status: int = 0
    error: str = ""
    total_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # The first and the last event that carried something generated; only a stream has them.
    first_token_s: float | None = None
    last_token_s: float | None = None

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.error

    @property
    def inter_token_s(self) -> float | None:
        """Mean distance of two tokens, by the usage: an event may hold several tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.completion_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.completion_tokens - 1)

    def mark_token(self, now_s: float) -> None:
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s

    def count(self, usage: dict[str, Any] | None) -> None:
        """Take the token counts of an answer's ``usage``, where it has one."""
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens", 0)
            self.completion_tokens = usage.get("completion_tokens", 0)


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a whole run; rates and latencies are those of the requests that succeeded.

    ``latencies`` has the percentiles by name, None where nothing was measured.
    ``failures`` counts the others by status and code, ``statuses`` all.
    """

    plan: Plan
    done: int
    failed: int
    elapsed_s: float
    prompt_tokens: int
    completion_tokens: int
    latencies: dict[str, dict[int, float] | None]
    statuses: dict[int, int]
    failures: dict[tuple[int, str], int]
    interrupted: bool

    @classmethod
    def of(cls, plan: Plan, samples: Sequence[Sample], elapsed_s: float, *, interrupted: bool = False) -> "Report":
        good = [sample for sample in samples if sample.ok]
        return cls(
            plan=plan,
            done=len(samples),
            failed=len(samples) - len(good),
            elapsed_s=elapsed_s,
            prompt_tokens=sum(sample.prompt_tokens for sample in good),
            completion_tokens=sum(sample.completion_tokens for sample in good),
            latencies={
                "ttft": percentiles(sample.first_token_s for sample in good),
                "inter_token": percentiles(sample.inter_token_s for sample in good),
                "total": percentiles(sample.total_s for sample in good),
            },
            statuses=dict(sorted(Counter(sample.status for sample in samples).items())),
            failures=dict(Counter((sample.status, sample.error) for sample in samples if not sample.ok).most_common()),
            interrupted=interrupted,
        )

    @property
    def requests_per_s(self) -> float:
        return (self.done - self.failed) / self.elapsed_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens; for embeddings, which generate none, the tokens read."""
        return (self.completion_tokens or self.prompt_tokens) / self.elapsed_s

    def as_json(self) -> str:
        shown = {
            "url": self.plan.url,
            "endpoint": self.plan.endpoint.value,
            "model": self.plan.model,
            "stream": self.plan.streams,
            "concurrency": self.plan.concurrency,
            "requests": self.plan.requests,
            "done": self.done,
            "failed": self.failed,
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed_s,
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "latency_s": {name: _named(found) for name, found in self.latencies.items()},
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "errors": [
                {"status": status, "code": code, "count": count} for (status, code), count in self.failures.items()
            ],
        }
        return orjson.dumps(shown).decode()


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest measured value that at least ``percent`` of all do not exceed (nearest rank); never interpolated."""
    return ordered[max(ceil(len(ordered) * percent / 100), 1) - 1]


def percentiles(values: Iterable[float | None]) -> dict[int, float] | None:
    """The percentiles of those that were measured; None when none was."""
    ordered = sorted(value for value in values if value is not None)
    return {percent: percentile(ordered, percent) for percent in PERCENTS} if ordered else None


def table(report: Report) -> RenderableType:
    """What the terminal shows: rates, latencies, and the errors if there are any."""
    parts: list[RenderableType] = [Text(_headline(report)), _latencies(report)]
    if report.failures:
        parts.append(_errors(report))
    return Group(*parts)


def _headline(report: Report) -> str:
    plan = report.plan
    kind = f"{plan.endpoint.value}, {'streaming' if plan.streams else 'whole replies'}, {plan.concurrency} at a time"
    ended = (
        f"interrupted after {report.done} of {plan.requests} requests"
        if report.interrupted
        else f"{report.done} requests"
    )
    return (
        f"{ended} ({kind}) in {report.elapsed_s:.2f} s, {report.failed} failed\n"
        f"{report.requests_per_s:.2f} requests/s   {report.tokens_per_s:.1f} tokens/s   "
        f"tokens: {report.prompt_tokens} prompt, {report.completion_tokens} completion"
    )


def _latencies(report: Report) -> Table:
    shown = Table("latency (ms)", *(f"p{percent}" for percent in PERCENTS))
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, title in (("ttft", "time to first token"), ("inter_token", "between tokens"), ("total", "total")):
        found = report.latencies[name]
        shown.add_row(title, *(f"{found[percent] * 1000:.1f}" if found else "-" for percent in PERCENTS))
    return shown


def _errors(report: Report) -> Table:
    shown = Table("status", "error", "requests")
    for (status, code), count in report.failures.items():
        shown.add_row(str(status) if status else "none", Text(code), str(count))
    return shown


def _named(found: dict[int, float] | None) -> dict[str, float] | None:
    return {f"p{percent}": value for percent, value in found.items()} if found else None
