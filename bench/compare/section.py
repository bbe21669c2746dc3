"""What a script of its own has measured, as a section of docs/benchmarks.md."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from compare.machine import commit

DOCS = Path(__file__).parents[2] / "docs"
# The scripts' sections begin here; what stands before is written by `make bench`.
MARK = "<!-- what scripts of their own have measured -->"


def publish(name: str, title: str, table: Table, verdict: str, svg: str | None = None) -> Path:
    """Write the section of ``bench/NAME.py``, and the page with the sections of all; the page."""
    beside = DOCS / "benchmarks"
    beside.mkdir(parents=True, exist_ok=True)
    if svg is not None:
        (beside / f"{name}.svg").write_text(svg)
    (beside / f"{name}.section").write_text(
        "\n".join(_section(name, title, table, verdict, pictured=svg is not None)) + "\n"
    )
    page = DOCS / "benchmarks.md"
    before = page.read_text().partition(MARK)[0].rstrip() if page.exists() else "# Benchmarks"
    page.write_text("\n".join([before, *sections(beside)]) + "\n")
    return page


def sections(beside: Path) -> Iterator[str]:
    """All that have been written, for the end of the page."""
    found = sorted(beside.glob("*.section"))
    if found:
        yield f"\n{MARK}"
    for section in found:
        yield "\n" + section.read_text().rstrip()


def _section(name: str, title: str, table: Table, verdict: str, *, pictured: bool) -> Iterator[str]:
    day = datetime.now(UTC).date().isoformat()
    yield f"## {title}\n"
    yield f"`bench/{name}.py`, {day}, commit {commit()}, {os.cpu_count()} cores. {table.title}.\n"
    yield from _markdown(table)
    if table.caption:
        yield f"\n{table.caption}."
    yield f"\n{verdict}."
    if pictured:
        yield f"\n![{name}](benchmarks/{name}.svg)"


def _markdown(table: Table) -> Iterator[str]:
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    for number, line in enumerate(zip(*columns, strict=True)):
        yield "| " + " | ".join(line) + " |"
        if number == 0:
            yield "|---|" + "--:|" * (len(line) - 1)
