"""Plots of a result as SVG: panels of bars, each with its median and a line from the least to the most."""

from typing import Any

from compare.bars import Bar, Panel, drawn
from compare.figures import spread
from compare.peers import DIRECT, LABELS
from compare.rows import HEADLINES, ROWS

# The plots, and the rows and figures that their panels show.
PLOTS = {
    "throughput": [("whole16", "rate"), ("whole100", "rate"), ("streams", "rate"), ("embeddings", "rate")],
    "cpu": [("whole16", "cpu_us"), ("whole100", "cpu_us"), ("streams", "cpu_us_token"), ("paced", "cpu_us_token")],
    "latency": [("single16", "p50"), ("single_stream", "ttft_p50"), ("fixed16", "p99"), ("fixed_streams", "ttft_p99")],
}


def plots(told: dict[str, Any]) -> dict[str, str]:
    """The SVG of each plot for which there are figures."""
    found = {name: [panel for each in panels if (panel := _panel(told, *each)).bars] for name, panels in PLOTS.items()}
    return {name: drawn(panels) for name, panels in found.items() if panels}


def _panel(told: dict[str, Any], row: str, figure: str) -> Panel:
    headline = HEADLINES[figure]
    better = "more is better" if headline.more_is_better else "less is better"
    title = next(each.title for each in ROWS if each.name == row)
    peers = [peer for peer in told["rows"].get(row, {}) if peer != DIRECT]
    bars = [
        Bar(LABELS[peer], found, ours=peer == "corral") for peer in peers if (found := spread(told, row, peer, figure))
    ]
    return Panel(title, f"{headline.title}, {better}", bars, headline.digits)
