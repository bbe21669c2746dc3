"""``corral usage``, on stores that tests have filled."""

import csv
import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from corral.cli import app
from corral.config import UsageSettings
from corral.core.usage_report import By, Every, Question, UsageSum
from corral.store.database import migrate, open_engine
from corral.store.ingest import Ingester
from corral.store.take import Taker
from corral.usage_cli import SPARKS, period_table, spark_table, sparkline
from support.books import store_of
from support.journals import finish, journal_in, record_of
from support.run import async_test

TRICKY = "[red]a,b\"'[/red]"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    _fill(tmp_path)
    (tmp_path / "corral.yaml").write_text("usage: {currency: EUR}\n")
    return tmp_path


@async_test
async def _fill(directory: Path) -> None:
    engine = open_engine(store_of(directory / "run" / "corral.db"))
    await migrate(engine)
    journal = journal_in(directory / "journal")
    for number, client in enumerate(("ann", TRICKY, "ann")):
        record = record_of(number, client=client)
        record.opened_unix_s = time.time() - 7200 - 4.5
        finish(journal, record)
    journal.shut()
    ingester = Ingester(Taker(engine), journal, UsageSettings(journal_dir=directory / "journal"), {})
    await ingester.turn()
    ingester.leave()
    journal.leave()
    await engine.dispose()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["usage", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_table_shows_names_as_they_are(store: Path) -> None:
    shown = run("--since", "1d")
    assert TRICKY in shown
    assert "costs in EUR" in shown
    assert SPARKS[-1] in shown


def test_every_period_has_its_lines(store: Path) -> None:
    shown = run("--since", "1d", "--every", "hour", "--by", "model")
    assert "llama" in shown
    assert ":00" in shown


def test_programs_get_json(store: Path) -> None:
    told = json.loads(run("--since", "1d", "--json"))
    assert told["currency"] == "EUR"
    assert {line["client"]: line["requests"] for line in told["data"]} == {"ann": 2, TRICKY: 1}


def test_spreadsheets_get_csv(store: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(run("--since", "1d", "--csv", "--every", "day"))))
    assert {line["client"]: line["outcome_ok"] for line in lines} == {"ann": "2", TRICKY: "1"}
    assert all(line["period"] for line in lines)


def test_one_client_or_model_can_be_asked_for(store: Path) -> None:
    assert len(json.loads(run("--since", "1d", "--json", "--client", "ann"))["data"]) == 1
    assert json.loads(run("--since", "1d", "--json", "--model", "other"))["data"] == []
    assert json.loads(run("--since", "2w", "--until", "1w", "--json"))["data"] == []


def test_without_a_store_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["usage"])
    assert "corral keys create" in str(result.exception)


def test_a_file_that_is_no_store_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "corral.db").write_text("this is no database, and long enough to be one " * 20)
    result = CliRunner().invoke(app, ["usage"])
    assert "corral.db cannot be read" in str(result.exception)


def test_a_time_that_is_none_is_told(store: Path) -> None:
    result = CliRunner().invoke(app, ["usage", "--since", "yesterday"])
    assert "yesterday" in str(result.exception)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [([], 8, ""), ([0, 0], 8, "  "), ([1, 8, 4], 8, "▁█▄"), ([5, 5, 1, 1], 2, "█▂"), ([7], 8, "█")],
)
def test_sparklines(values: list[int], width: int, line: str) -> None:
    assert sparkline(values, width) == line


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_into_terminals(width: int) -> None:
    now = time.time()
    sums = [UsageSum(None, f"client-{n}", requests=10**n, prompt_tokens=10 ** (n + 3), cost=1.5) for n in range(8)]
    question = Question(now - 86400, now, By.CLIENT)
    console = Console(width=width, file=io.StringIO())
    console.print(spark_table(sums, question, Every.HOUR, "EUR", width))
    console.print(period_table(sums, question, "EUR", width))
    assert isinstance(console.file, io.StringIO)
    assert "…" not in console.file.getvalue()
    assert "client-7" in console.file.getvalue()
