"""``corral usage``: who used what, out of the store; Corral need not run."""

import asyncio
import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from corral.config import Config, load
from corral.core.errors import ConfigError, OperateError
from corral.core.usage_report import By, Every, Question, UsageSum, moment, next_period, period_start, period_text, told

# From nothing to the most of its row.
SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_WIDTH = range(8, 49)
# What stands beside it; terminals that are narrower do not see all columns.
TABLE_WIDTH = 86
LEFT_OUT_OF_NARROW = {"slot h", "p99"}
FIGURES = ("requests", "failed", "in", "cached", "out", "slot h", "cost", "TTFT", "p99")
# Up to so many days a sparkline shows hours.
HOURLY_DAYS = 2

# Where nobody says how wide it is.
WIDTH = 120


class Form(Enum):
    """How it is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def usage(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The settings; ./corral.yaml when there is one.")
    ] = None,
    by: Annotated[By, typer.Option(help="What sums are told apart by.")] = By.CLIENT,
    since: Annotated[str, typer.Option(help="12h, 7d or 2w ago, or a date of UTC: 2026-11-25, 2026-11.")] = "7d",
    until: Annotated[str | None, typer.Option(help="As --since. [default: now]", show_default=False)] = None,
    every: Annotated[Every | None, typer.Option(help="A sum for each hour, day or month of UTC.")] = None,
    client: Annotated[str | None, typer.Option(help="Of this client only.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show who used what: requests, tokens, time of slots, cost, times to the first token."""
    settings = load(file=config)
    question = _question(since, until, by, every, client, model)
    form = Form.JSON if as_json else Form.CSV if as_csv else Form.TABLE
    if form is not Form.TABLE or every is not None:
        sums = _ask(settings, question)
        _print(form, sums, question, settings.usage.currency)
        return
    sparks = Every.HOUR if question.until - question.since <= HOURLY_DAYS * 86400 else Every.DAY
    sums = _ask(settings, _question(since, until, by, sparks, client, model))
    console = _console()
    console.print(spark_table(sums, question, sparks, settings.usage.currency, console.width))


def spark_table(
    sums: Sequence[UsageSum], question: Question, every: Every, currency: str | None, width: int = WIDTH
) -> Table:
    """A line for each name, with its tokens over time."""
    periods = _periods(question, every)
    sparks = min(max(width - TABLE_WIDTH, SPARKS_WIDTH.start), SPARKS_WIDTH.stop - 1)
    table = _table(question, currency, width)
    table.add_column(f"tokens by {every.value}", no_wrap=True)
    totals: dict[str, UsageSum] = {}
    tokens: dict[str, dict[int | None, int]] = {}
    for each in sums:
        totals.setdefault(each.name, UsageSum(None, each.name)).merge(each)
        tokens.setdefault(each.name, {})[each.period] = each.total_tokens
    for total in sorted(totals.values(), key=lambda each: (-each.total_tokens, each.name)):
        table.add_row(
            *_row(total, currency, width), sparkline([tokens[total.name].get(period, 0) for period in periods], sparks)
        )
    _add_total(table, sums, currency, width)
    return table


def period_table(sums: Sequence[UsageSum], question: Question, currency: str | None, width: int = WIDTH) -> Table:
    """A line for each period and name."""
    table = _table(question, currency, width)
    last = None
    for each in sums:
        if each.period != last and last is not None:
            table.add_section()
        last = each.period
        table.add_row(*_row(each, currency, width, question.every))
    _add_total(table, sums, currency, width)
    return table


def sparkline(values: Sequence[int], width: int) -> str:
    """Values as bars in as many characters, one or more to a bar; nothing at all is a blank."""
    each = -(-len(values) // width) or 1
    sums = [sum(values[start : start + each]) for start in range(0, len(values), each)]
    most = max(sums, default=0)
    return "".join(SPARKS[value * (len(SPARKS) - 1) // most] if value else " " for value in sums)


def as_csv_text(sums: Sequence[UsageSum], question: Question) -> str:
    """A line for each sum, below the names of its columns."""
    text = io.StringIO()
    rows = [_flat(told(each, question)) for each in sums]
    outcomes = sorted({name for row in rows for name in row if name.startswith("outcome_")})
    plain = _flat(told(UsageSum(0, ""), question))
    writer = csv.DictWriter(text, [*plain, *outcomes], restval=0, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _ask(settings: Config, question: Question) -> list[UsageSum]:
    if not settings.store.used:
        right = "make one with 'corral keys create', or set CORRAL_STORE_URL to a PostgreSQL"
        raise OperateError(f"there is no store at {settings.store.file}, so nothing was kept; {right}")
    # What it needs takes time to load.
    from corral.store.look import look

    return asyncio.run(look(settings.store, question))


def _question(
    since: str, until: str | None, by: By, every: Every | None, client: str | None, model: str | None
) -> Question:
    now = time.time()
    try:
        return Question(
            moment(since, now), now if until is None else moment(until, now), by, every, client=client, model=model
        )
    except (ValueError, OverflowError) as error:
        raise ConfigError([f"--since, --until: {error}"]) from error


def _print(form: Form, sums: Sequence[UsageSum], question: Question, currency: str | None) -> None:
    match form:
        case Form.JSON:
            lines = [told(each, question) for each in sums]
            print(json.dumps({"currency": currency, "data": lines}))  # noqa: T201  (for programs)
        case Form.CSV:
            print(as_csv_text(sums, question), end="")  # noqa: T201  (for programs)
        case Form.TABLE:
            console = _console()
            console.print(period_table(sums, question, currency, console.width))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def _table(question: Question, currency: str | None, width: int) -> Table:
    caption = None if currency is None else f"costs in {escape(currency)}"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    if question.every is not None:
        table.add_column(question.every.value, no_wrap=True)
    table.add_column(question.by.value if question.by is not None else "", min_width=8, overflow="fold")
    for name in _figures(width):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(total: UsageSum, currency: str | None, width: int, every: Every | None = None) -> list[str]:
    period = [] if every is None else ["" if total.period is None else period_text(total.period, every)]
    failed = total.requests - total.outcomes.get("ok", 0) - total.outcomes.get("unconfirmed", 0)
    figures = {
        "requests": _short(total.requests),
        "failed": _short(failed) if failed else "",
        "in": _short(total.prompt_tokens),
        "cached": _short(total.cached_tokens),
        "out": _short(total.completion_tokens),
        "slot h": f"{total.slot_s / 3600:,.2f}",
        "cost": f"{total.cost:,.2f}" if total.cost or currency else "",
        "TTFT": _seconds(total.ttft_s(0.5)),
        "p99": _seconds(total.ttft_s(0.99)),
    }
    return [*period, escape(total.name) or "-", *(figures[name] for name in _figures(width))]


def _figures(width: int) -> list[str]:
    return [name for name in FIGURES if width >= TABLE_WIDTH + 10 or name not in LEFT_OUT_OF_NARROW]


def _add_total(table: Table, sums: Sequence[UsageSum], currency: str | None, width: int) -> None:
    if not sums:
        return
    total = UsageSum(None, "all")
    for each in sums:
        total.merge(each)
    blank = [""] if table.columns[0].header in {every.value for every in Every} else []
    table.add_section()
    table.add_row(*blank, *_row(total, currency, width))


def _periods(question: Question, every: Every) -> list[int]:
    periods = []
    start = period_start(question.since, every)
    while start < question.until:
        periods.append(start)
        start = next_period(start, every)
    return periods


def _short(count: int) -> str:
    """A number as people read it."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / min(size, 1e3 if unit == 'k' else size):,.1f}{unit}"
    return str(count)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g} s"


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    outcomes = {f"outcome_{name}": count for name, count in line.pop("outcomes").items()}
    ttft = {f"ttft_{name}_s": seconds for name, seconds in line.pop("time_to_first_token").items()}
    return line | ttft | outcomes
