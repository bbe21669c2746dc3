"""Panels of bars as SVG, each bar with its middle and a line from the least to the most."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from compare.figures import Spread

PANEL_WIDTH, LINE, LEFT, RIGHT, HEAD, GAP = 430, 22, 110, 70, 44, 20
PANELS_A_LINE = 2
OURS, THEIRS, INK, FAINT = "#b4532a", "#8fa3b5", "#1f2933", "#52606d"


@dataclass(frozen=True, slots=True)
class Bar:
    """``ours`` stands out."""

    label: str
    found: Spread
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one figure; ``digits`` are those behind the point."""

    title: str
    note: str
    bars: Sequence[Bar]
    digits: int = 0


def drawn(panels: Sequence[Panel]) -> str:
    """An SVG with all of them."""
    tall = HEAD + LINE * max(len(panel.bars) for panel in panels) + GAP
    width, height = PANEL_WIDTH * min(PANELS_A_LINE, len(panels)), tall * -(-len(panels) // PANELS_A_LINE)
    parts = []
    for number, panel in enumerate(panels):
        x, y = number % PANELS_A_LINE * PANEL_WIDTH, number // PANELS_A_LINE * tall
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel), "</g>"]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(panel: Panel) -> Iterator[str]:
    yield f'<text x="8" y="18" font-weight="bold" fill="{INK}">{escape(panel.title)}</text>'
    yield f'<text x="8" y="34" fill="{FAINT}">{escape(panel.note)}</text>'
    scale = (PANEL_WIDTH - LEFT - RIGHT) / max(bar.found.most for bar in panel.bars)
    for number, bar in enumerate(panel.bars):
        yield from _bar(bar, HEAD + number * LINE, scale, panel.digits)


def _bar(bar: Bar, y: float, scale: float, digits: int) -> Iterator[str]:
    colour, middle, found = OURS if bar.ours else THEIRS, y + LINE / 2, bar.found
    least, most = LEFT + found.least * scale, LEFT + found.most * scale
    yield f'<text x="{LEFT - 6}" y="{middle + 4}" text-anchor="end" fill="{INK}">{escape(bar.label)}</text>'
    yield f'<rect x="{LEFT}" y="{y + 3}" width="{found.middle * scale:.1f}" height="{LINE - 6}" fill="{colour}"/>'
    yield f'<path d="M{least:.1f} {middle}H{most:.1f}" stroke="{INK}"/>'
    yield f'<text x="{most + 5:.1f}" y="{middle + 4}" fill="{INK}">{found.middle:,.{digits}f}</text>'
