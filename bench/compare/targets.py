"""What Corral is to reach, and whether it did in this run."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from compare.figures import fastest, harness_full, ratios
from compare.peers import LABELS, ROUTERS
from compare.rows import HEADLINES

MOST_IDLE_BYTES = 80e6
MOST_STREAM_BYTES = 30e3
MOST_START_S = 1.0
LEAST_OF_MODEL = 0.98

# Where the peer is faster than the harness can ask, requests a second of CPU time are compared.
BY_CPU = ", by CPU time†"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, what was found, and whether that is enough; None when it was not measured."""

    target: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Corral's figure in a row over that of the best of some peers."""

    row: str
    figure: str
    peers: tuple[str, ...]
    bound: float
    added: bool = False
    # Wished for, not asked for.
    aim: bool = False

    def judge(self, told: dict[str, Any]) -> Verdict:
        headline = HEADLINES[self.figure]
        best = fastest(told, self.row, self.peers, self.figure)
        by_cpu = self.figure == "rate" and best is not None and harness_full(told, self.row, best)
        peers = "the faster Rust router" if self.peers == ROUTERS else LABELS[self.peers[0]]
        sign = "≥" if headline.more_is_better else "≤"
        title = f"{self.row}: {'added ' if self.added else ''}{headline.title} {sign} {self.bound:g} × {peers}"
        title += " (an aim)" if self.aim else ""
        ratio = best and ratios(told, self.row, "per_cpu_s" if by_cpu else self.figure, best, added=self.added)
        if not ratio:
            return Verdict(title, "the noise is larger than the figure" if best else "not measured", None)
        met = ratio.middle >= self.bound if headline.more_is_better else ratio.middle <= self.bound
        found = f"{ratio.middle:.2f} × {LABELS[best or '']} ({ratio.least:.2f} – {ratio.most:.2f})"
        found += BY_CPU if by_cpu else ""
        return Verdict(title, found, met)


def latencies() -> list[Ratio]:
    """Whole replies and the first token of streams: 32 connections, one, and below saturation.

    In a closed loop of 32 connections it is the queue that is measured: there is
    nothing to take off that would be the proxy's own.
    """
    whole = product(("whole16", "single16", "fixed16"), ("p50", "p99"))
    first = product(("streams", "single_stream", "fixed_streams"), ("ttft_p50", "ttft_p99"))
    closed = ("whole16", "streams")
    return [Ratio(row, figure, ROUTERS, 1, added=row not in closed) for row, figure in (*whole, *first)]


RATIOS = [
    Ratio("whole16", "rate", ROUTERS, 1),
    Ratio("whole16", "rate", ("fastapi-httpx",), 40),
    Ratio("whole100", "rate", ROUTERS, 0.4),
    Ratio("whole100", "rate", ("fastapi-httpx",), 20),
    Ratio("streams", "rate", ROUTERS, 2),
    Ratio("streams", "rate", ("nginx",), 1),
    Ratio("paced", "cpu_us_token", ROUTERS, 1),
    Ratio("paced", "cpu_us_token", ("nginx",), 1, aim=True),
    Ratio("embeddings", "rate", ROUTERS, 1),
    *latencies(),
]


def verdicts(told: dict[str, Any]) -> list[Verdict]:
    """All targets, those that are ratios first."""
    others: list[Callable[[dict[str, Any]], Verdict]] = [_idle, _stream_memory, _start, _model]
    return [ratio.judge(told) for ratio in RATIOS] + [judge(told) for judge in others]


def _idle(told: dict[str, Any]) -> Verdict:
    found = told.get("idle", {}).get("corral", {}).get("rss_bytes")
    return _at_most("memory, idle, in MB", found, MOST_IDLE_BYTES, 1e6)


def _stream_memory(told: dict[str, Any]) -> Verdict:
    found = told.get("memory", {}).get("corral", {})
    return _at_most("memory for each of 2,000 streams, in KB", found.get("stream_bytes"), MOST_STREAM_BYTES, 1e3)


def _start(told: dict[str, Any]) -> Verdict:
    starts = told.get("start", {}).get("corral")
    return _at_most("from start to the first reply, in s", median(starts) if starts else None, MOST_START_S, 1)


def _at_most(what: str, found: float | None, most: float, unit: float) -> Verdict:
    title = f"{what} ≤ {most / unit:g}"
    if found is None:
        return Verdict(title, "not measured", None)
    return Verdict(title, f"{found / unit:.2f}", found <= most)


def _model(told: dict[str, Any]) -> Verdict:
    model = told.get("model", {})
    title = f"a real llama.cpp: tokens/s ≥ {LEAST_OF_MODEL} × direct"
    if "ratio" not in model:
        return Verdict(title, model.get("absent", "not measured"), None)
    least, most = model["interval"]
    return Verdict(title, f"{model['ratio']:.3f} (95 %: {least:.3f} – {most:.3f})", model["ratio"] >= LEAST_OF_MODEL)
