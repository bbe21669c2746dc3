"""What is asked of past usage, and the answer: sums by client, key or model over hours, days or months of UTC."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from corral.core.sketch import Sketch

HOUR_S = 3600
UNITS_S = {"h": HOUR_S, "d": 24 * HOUR_S, "w": 7 * 24 * HOUR_S}
AGO = re.compile(r"(\d{1,6})([hdw])")
QUANTILES = (0.5, 0.9, 0.99)


class By(Enum):
    """What sums are told apart by."""

    CLIENT = "client"
    KEY = "key"
    MODEL = "model"


class Every(Enum):
    """The length of a period."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Question:
    """Which usage, from when until when in Unix time, told apart how; None: not told apart, or not restricted."""

    since: float
    until: float
    by: By | None = None
    every: Every | None = None
    client: str | None = None
    # Of a key in the store; "": only what came with keys of the environment.
    key_id: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class HourSum:
    """What the exchanges of one outcome came to in an hour, as the store has it."""

    hour: int
    client: str
    key_id: str
    model: str
    outcome: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    slot_s: float
    cost: float
    ttft: bytes


@dataclass(slots=True)
class UsageSum:
    """What exchanges came to. One writer: who adds them up.

    ``period`` is when it began, None for the whole time; ``name`` is empty where nothing is told apart.
    """

    period: int | None
    name: str
    requests: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    slot_s: float = 0.0
    cost: float = 0.0
    ttft: Sketch = field(default_factory=Sketch)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, hour: HourSum) -> None:
        """Add what an hour came to."""
        self.merge(
            UsageSum(
                None,
                "",
                hour.requests,
                {hour.outcome: hour.requests},
                hour.prompt_tokens,
                hour.cached_tokens,
                hour.completion_tokens,
                hour.slot_s,
                hour.cost,
                Sketch.unpacked(hour.ttft),
            )
        )

    def merge(self, other: "UsageSum") -> None:
        """Add what others came to."""
        self.requests += other.requests
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.slot_s += other.slot_s
        self.cost += other.cost
        self.ttft.merge(other.ttft)

    def ttft_s(self, share: float) -> float | None:
        """The time to the first token that this share of the requests has not exceeded; None where none came."""
        seconds = self.ttft.quantile(share)
        # More digits than it is exact would say nothing.
        return None if seconds is None else float(f"{seconds:.3g}")


class Report:
    """Adds hours up to the sums that were asked for. One writer: itself."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._sums: dict[tuple[int | None, str], UsageSum] = {}

    def add(self, hours: Iterable[HourSum]) -> None:
        """Add hours, all of them within the question."""
        every, by = self._question.every, self._question.by
        for hour in hours:
            if not hour.requests:
                # All have turned out to have ended otherwise.
                continue
            period = None if every is None else period_start(hour.hour, every)
            name = "" if by is None else _name(hour, by)
            total = self._sums.get((period, name))
            if total is None:
                total = self._sums[period, name] = UsageSum(period, name)
            total.add(hour)

    def sums(self) -> list[UsageSum]:
        """By time, and in one period by tokens, the most first."""
        return sorted(self._sums.values(), key=lambda each: (each.period or 0, -each.total_tokens, each.name))


def period_start(at: float, every: Every) -> int:
    """When the period of a moment began."""
    if every is not Every.MONTH:
        return int(at // _length_s(every)) * _length_s(every)
    moment = datetime.fromtimestamp(at, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp())


def next_period(start: int, every: Every) -> int:
    """When the period after this one begins."""
    # No month has more days than this, and none begins within the days that are too many.
    return period_start(start + 31 * UNITS_S["d"], every) if every is Every.MONTH else start + _length_s(every)


def moment(text: str, now: float) -> float:
    """``7d``, ``12h`` and ``2w`` ago, or a date of UTC (``2026-11-25``, ``2026-11``); raises ValueError."""
    if ago := AGO.fullmatch(text):
        return now - int(ago[1]) * UNITS_S[ago[2]]
    for form in ("%Y-%m-%d", "%Y-%m", "%Y-%m-%dT%H", "%Y-%m-%dT%H:%M"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    raise ValueError(f"'{text}' is neither a time ago (12h, 7d, 2w) nor a date (2026-11-25)")


def period_text(start: int, every: Every) -> str:
    """A period as people write it."""
    form = {Every.HOUR: "%Y-%m-%d %H:00", Every.DAY: "%Y-%m-%d", Every.MONTH: "%Y-%m"}[every]
    return datetime.fromtimestamp(start, UTC).strftime(form)


def told(total: UsageSum, question: Question) -> dict[str, Any]:
    """A sum with the names that programs know it by."""
    told: dict[str, Any] = {}
    if total.period is not None and question.every is not None:
        told["period"] = period_text(total.period, question.every)
    if question.by is not None:
        told[question.by.value] = total.name
    return told | {
        "requests": total.requests,
        "outcomes": dict(sorted(total.outcomes.items())),
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.total_tokens,
        "slot_seconds": round(total.slot_s, 3),
        "cost": round(total.cost, 9),
        "time_to_first_token": {f"p{share * 100:.0f}": total.ttft_s(share) for share in QUANTILES},
    }


def _length_s(every: Every) -> int:
    return UNITS_S["h" if every is Every.HOUR else "d"]


def _name(hour: HourSum, by: By) -> str:
    match by:
        case By.CLIENT:
            return hour.client
        case By.MODEL:
            return hour.model
        case By.KEY:
            return hour.key_id
