"""Medians, spreads and ratios of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from compare.peers import DIRECT
from compare.rows import HEADLINES

# Told beside the figures; when there are more, the row says nothing of the peer.
ERRORS_ALLOWED = 0.05
# A core that is busy for such a share of the time is full; and a proxy that is this near to
# the rate without any proxy is held up by the load, not by itself.
FULL = 0.95
NEAR_BARE = 0.8


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the most."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        return cls(median(values), min(values), max(values)) if values else None


def sound(sample: dict[str, Any]) -> bool:
    """Whether a measurement counts: replies came, and nearly all of them were right."""
    return bool(sample["requests"]) and sample["errors"] <= ERRORS_ALLOWED * sample["requests"]


def spread(told: dict[str, Any], row: str, peer: str, figure: str) -> Spread | None:
    samples = told["rows"].get(row, {}).get(peer, [])
    return Spread.of([sample[figure] for sample in samples if sound(sample) and sample.get(figure)])


def fastest(told: dict[str, Any], row: str, peers: Sequence[str], figure: str) -> str | None:
    """The one of the peers whose median is best."""
    found = {peer: each.middle for peer in peers if (each := spread(told, row, peer, figure))}
    best = max if HEADLINES[figure].more_is_better else min
    return best(found, key=lambda peer: found[peer]) if found else None


def ratios(told: dict[str, Any], row: str, figure: str, peer: str, *, added: bool) -> Spread | None:
    """Corral's figure over a peer's, repetition by repetition; ``added`` takes off what it is without any proxy.

    None also when a peer seemed to add nothing in some repetition: to leave only
    that one out would pick those that suit.
    """
    samples = told["rows"].get(row, {})
    found = []
    for ours, theirs, bare in zip(samples.get("corral", []), samples.get(peer, []), samples[DIRECT], strict=False):
        if not (sound(ours) and sound(theirs)):
            continue
        less = bare[figure] if added else 0.0
        if theirs[figure] <= less:
            return None
        found.append((ours[figure] - less) / (theirs[figure] - less))
    return Spread.of(found)


def harness_full(told: dict[str, Any], row: str, peer: str) -> bool:
    """Whether the load and the stub were at their end before the proxy was: then it may do more than is told."""
    samples = told["rows"].get(row, {}).get(peer, [])
    bare, reached = (spread(told, row, name, "rate") for name in (DIRECT, peer))
    if not samples or not bare or not reached or peer == DIRECT:
        return False
    load, proxy = (median(sample[busy] for sample in samples) for busy in ("load_busy", "proxy_busy"))
    return reached.middle > NEAR_BARE * bare.middle or load > FULL > proxy
