"""Shows a result: on the terminal, and as docs/benchmarks.md with plots and the raw figures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from compare.figures import Spread, harness_full, sound, spread
from compare.peers import BY_NAME, LABELS
from compare.plots import plots
from compare.rows import HEADLINES, ROWS, Row
from compare.section import sections
from compare.targets import Verdict, verdicts

Cells = list[str]

WORDS = {True: "met", False: "**missed**", None: "–"}
HARNESS = "†"
INTRODUCTION = """\
Written by `make bench`; [bench/README.md](../bench/README.md) says how it measures. Each proxy had one core for itself,
the stub of llama-server and the load shared another. Corral ran with everything on: key, limit, queue, validation,
metrics, log line, usage. Figures are medians of alternating measurements, with the least and the most in brackets.
Compare only what stands in one table."""


def columns(row: Row) -> list[str]:
    """The figures that say something in a row."""
    streams = bool(row.fields.get("stream"))
    closed = [] if row.below else ["rate"]
    cpu = ["cpu_us_token"] if streams else ["cpu_us"]
    first = ["ttft_p50", "ttft_p99"] if streams else []
    last = [] if row.name == "paced" else ["p50", "p99"]
    return [*closed, *cpu, *first, *last]


def table(told: dict[str, Any], row: Row) -> list[Cells]:
    """A row of the benchmark as a table: its head, then a line for each peer."""
    figures = columns(row)
    lines = [["", *(HEADLINES[figure].title for figure in figures)]]
    for peer in told["rows"][row.name]:
        mark = HARNESS if row.unpaced and harness_full(told, row.name, peer) else ""
        lines.append([LABELS[peer], *(_cell(told, row, peer, figure, mark) for figure in figures)])
    return lines


def remarks(told: dict[str, Any], row: Row) -> list[str]:
    """What keeps figures of a table from saying what they seem to."""
    told_of = ((peer, _remark(told, row, peer)) for peer in told["rows"][row.name])
    return [f"{LABELS[peer]}: {remark}." for peer, remark in told_of if remark]


def _cell(told: dict[str, Any], row: Row, peer: str, figure: str, mark: str) -> str:
    found = spread(told, row.name, peer, figure)
    if found is None:
        return "–"
    return written(found, HEADLINES[figure].digits) + (mark if figure == "rate" else "")


def written(found: Spread, digits: int) -> str:
    if found.least == found.most:
        return f"{found.middle:,.{digits}f}"
    return f"{found.middle:,.{digits}f} ({found.least:,.{digits}f} – {found.most:,.{digits}f})"


def _remark(told: dict[str, Any], row: Row, peer: str) -> str:
    samples = told["rows"][row.name][peer]
    errors = sum(sample["errors"] for sample in samples)
    asked = errors + sum(sample["requests"] for sample in samples)
    if samples and not any(map(sound, samples)):
        return f"left out, since {errors} of {asked} requests failed ({samples[0]['why'][:160]})"
    reached = [sample["rate"] / sample["offered"] for sample in samples if sample["offered"]]
    late = f"saturated at {median(reached):.0%} of the rate" if reached and median(reached) < 0.95 else ""
    return ", ".join(filter(None, [f"{errors} of {asked} requests failed" if errors else "", late]))


def others(told: dict[str, Any]) -> list[Cells]:
    """Memory and start."""
    lines = [["", "idle, MB", "a stream, KB", "streams", "idle, % of a core", "start, s"]]
    for peer in told.get("idle", {}):
        idle, memory = told["idle"][peer], told.get("memory", {}).get(peer)
        stream, streams = "–", "–"
        if memory:
            stream, streams = f"{memory['stream_bytes'] / 1e3:.1f}", f"{memory['streams']:,}"
            streams += f", {memory['errors']} failed" if memory["errors"] else ""
        start = Spread.of(told["start"][peer])
        began = written(start, 2) if start else "–"
        lines.append(
            [LABELS[peer], f"{idle['rss_bytes'] / 1e6:.0f}", stream, streams, f"{idle['busy'] * 100:.1f}", began]
        )
    return lines


def title(told: dict[str, Any], row: Row) -> str:
    rates = {sample["offered"] for samples in told["rows"][row.name].values() for sample in samples}
    return f"{row.title}: {max(rates):,.0f}/s, 32 connections" if row.below and rates else row.title


def measured(told: dict[str, Any]) -> list[Row]:
    return [row for row in ROWS if any(told["rows"].get(row.name, {}).values())]


# -- the terminal ------------------------------------------------------------------


def show(told: dict[str, Any], console: Console) -> None:
    """All tables and targets."""
    for row in measured(told):
        _print(console, f"{row.name}: {title(told, row)}", table(told, row))
        for remark in remarks(told, row):
            console.print(remark, highlight=False, markup=False)
    if told.get("idle"):
        _print(console, "memory and start", others(told))
    targets = [[each.target, each.found, WORDS[each.met].strip("*")] for each in verdicts(told) if each.met is not None]
    if targets:
        _print(console, "targets", [["", "found: median (least – most)", ""], *targets])
    for peer, why in told["absent"].items():
        console.print(f"{LABELS[peer]} is left out: {why}", highlight=False, markup=False)
    if "absent" in told.get("model", {}):
        console.print(f"no real model: {told['model']['absent']}", highlight=False, markup=False)


def _print(console: Console, name: str, lines: Sequence[Cells]) -> None:
    shown = Table(title=name, title_justify="left")
    for number, cell in enumerate(lines[0]):
        shown.add_column(cell, justify="right" if number else "left")
    for line in lines[1:]:
        shown.add_row(*line)
    console.print(shown)


# -- the page ----------------------------------------------------------------------


def write_docs(told: dict[str, Any], directory: Path) -> Path:
    """Write benchmarks.md, and the plots and raw figures in benchmarks/ beside it."""
    beside = directory / "benchmarks"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "results.json").write_text(json.dumps(told, indent=1) + "\n")
    pictures = plots(told)
    for name, svg in pictures.items():
        (beside / f"{name}.svg").write_text(svg)
    page = directory / "benchmarks.md"
    page.write_text("\n".join(_page(told, pictures, beside)) + "\n")
    return page


def _page(told: dict[str, Any], pictures: dict[str, str], beside: Path) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield INTRODUCTION
    yield ""
    yield from _how(told)
    yield "\n## Targets\n"
    yield from _markdown([["target", "found: median (least – most)", ""], *map(_line, verdicts(told))])
    for name in pictures:
        yield f"\n![{name}](benchmarks/{name}.svg)"
    for row in measured(told):
        yield f"\n## {row.name}\n\n{title(told, row)[0].upper()}{title(told, row)[1:]}.\n"
        yield from _markdown(table(told, row))
        yield from (f"\n{remark}" for remark in remarks(told, row))
    if told.get("idle"):
        yield "\n## Memory and start\n"
        yield from _markdown(others(told))
    yield from _real_model(told)
    yield f"\n{HARNESS} The load and the stub could do no more, the proxy might. Its CPU time holds all the same."
    yield "\nThe raw figures are in [results.json](benchmarks/results.json)."
    yield from sections(beside)


def _line(verdict: Verdict) -> Cells:
    return [verdict.target, verdict.found, WORDS[verdict.met]]


def _how(told: dict[str, Any]) -> Iterator[str]:
    lines = [["", ""], *([name, text] for name, text in told["machine"].items())]
    lines.append(["command", f"`{told['command']}`: {told['repeat']} × {told['seconds']} s"])
    lines += [[LABELS[peer], version] for peer, version in told.get("versions", {}).items()]
    lines += [[LABELS[peer], f"**left out**: {why}"] for peer, why in told["absent"].items()]
    unasked = [name for name in BY_NAME if name not in told.get("versions", {}) and name not in told["absent"]]
    lines += [[LABELS[peer], "not asked for in this run"] for peer in unasked]
    yield from _markdown(lines)


def _real_model(told: dict[str, Any]) -> Iterator[str]:
    model = told.get("model")
    if not model:
        return
    yield "\n## A real model\n"
    if "absent" in model:
        yield f"Not measured: {model['absent']}."
        return
    yield f"SmolLM2-135M on a real llama.cpp with {model['slots']} slots, {model['clients']} clients, streams of"
    yield f"{model['tokens']} tokens, all on the same cores; pairs of runs with {model['requests']} requests each.\n"
    pairs = [[f"{direct:.1f}", f"{ours:.1f}", f"{ours / direct:.3f}"] for direct, ours in model["pairs"]]
    yield from _markdown([["tokens/s direct", "through Corral", "ratio"], *pairs])
    least, most = model["interval"]
    yield f"\nRatio: {model['ratio']:.3f}, 95 % interval (bootstrap over pairs): {least:.3f} – {most:.3f}."


def _markdown(lines: Sequence[Cells]) -> Iterator[str]:
    head, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---', *['--:'] * (len(head) - 1)])}|"
    yield from (f"| {' | '.join(line)} |" for line in rest)
