"""Plots of a result as SVG: panels of bars, each with its median and a line from the least to the most."""

from collections.abc import Iterator
from html import escape
from typing import Any

from compare.figures import Spread, spread
from compare.peers import DIRECT, LABELS
from compare.rows import HEADLINES, ROWS

PANEL_WIDTH, LINE, LEFT, RIGHT, HEAD, GAP = 430, 22, 110, 70, 44, 20
PANELS_A_LINE = 2
OURS, THEIRS, INK, FAINT = "#b4532a", "#8fa3b5", "#1f2933", "#52606d"

# The plots, and the rows and figures that their panels show.
PLOTS = {
    "throughput": [("whole16", "rate"), ("whole100", "rate"), ("streams", "rate"), ("embeddings", "rate")],
    "cpu": [("whole16", "cpu_us"), ("whole100", "cpu_us"), ("streams", "cpu_us_token"), ("paced", "cpu_us_token")],
    "latency": [("single16", "p50"), ("single_stream", "ttft_p50"), ("fixed16", "p99"), ("fixed_streams", "ttft_p99")],
}


def plots(told: dict[str, Any]) -> dict[str, str]:
    """The SVG of each plot for which there are figures."""
    found = {name: [panel for panel in panels if _bars(told, *panel)] for name, panels in PLOTS.items()}
    return {name: _plot(told, panels) for name, panels in found.items() if panels}


def _bars(told: dict[str, Any], row: str, figure: str) -> dict[str, Spread]:
    peers = [peer for peer in told["rows"].get(row, {}) if peer != DIRECT]
    return {peer: found for peer in peers if (found := spread(told, row, peer, figure))}


def _plot(told: dict[str, Any], panels: list[tuple[str, str]]) -> str:
    tall = HEAD + LINE * max(len(_bars(told, *panel)) for panel in panels) + GAP
    width, height = PANEL_WIDTH * min(PANELS_A_LINE, len(panels)), tall * -(-len(panels) // PANELS_A_LINE)
    drawn = []
    for number, panel in enumerate(panels):
        x, y = number % PANELS_A_LINE * PANEL_WIDTH, number // PANELS_A_LINE * tall
        drawn += [f'<g transform="translate({x} {y})">', *_panel(_bars(told, *panel), *panel), "</g>"]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _panel(bars: dict[str, Spread], row: str, figure: str) -> Iterator[str]:
    headline = HEADLINES[figure]
    better = "more is better" if headline.more_is_better else "less is better"
    title = next(each.title for each in ROWS if each.name == row)
    yield f'<text x="8" y="18" font-weight="bold" fill="{INK}">{escape(title)}</text>'
    yield f'<text x="8" y="34" fill="{FAINT}">{escape(headline.title)}, {better}</text>'
    scale = (PANEL_WIDTH - LEFT - RIGHT) / max(each.most for each in bars.values())
    for number, (peer, found) in enumerate(bars.items()):
        yield from _bar(peer, found, HEAD + number * LINE, scale, headline.digits)


def _bar(peer: str, found: Spread, y: float, scale: float, digits: int) -> Iterator[str]:
    colour, middle = OURS if peer == "corral" else THEIRS, y + LINE / 2
    least, most = LEFT + found.least * scale, LEFT + found.most * scale
    yield f'<text x="{LEFT - 6}" y="{middle + 4}" text-anchor="end" fill="{INK}">{escape(LABELS[peer])}</text>'
    yield f'<rect x="{LEFT}" y="{y + 3}" width="{found.middle * scale:.1f}" height="{LINE - 6}" fill="{colour}"/>'
    yield f'<path d="M{least:.1f} {middle}H{most:.1f}" stroke="{INK}"/>'
    yield f'<text x="{most + 5:.1f}" y="{middle + 4}" fill="{INK}">{found.middle:,.{digits}f}</text>'
