"""Tables that are printed when all tests have run: of the fault matrix, of roles and routes, and of the threats."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from support.door import Door
from support.talk import MODES

# The properties of a test's report that name its cell in the fault matrix, and in that of roles and routes.
CELL = "fault matrix"
ROLE_CELL = "roles and routes"
COLUMNS = [f"{mode} {door.value}" for mode in MODES for door in Door]
# How pytest sorts reports, and what the matrix says of them; what went wrong overwrites what did not.
RESULTS = {"passed": "ok", "xfailed": "awaited", "failed": "FAILED", "error": "FAILED"}

ROWS = re.compile(r"::test_rows?_([0-9]+(?:_(?:to|and)_[0-9]+)*)_")
# The holes that systems like this one had.
THREATS = {
    1: "SQL in a key",
    2: "Host and target that disagree",
    3: "routes that run commands",
    4: "operator's routes without a check",
    5: "keys cached by a part of them",
    6: "weak or shown hashes of keys",
    7: "clients that choose the upstream",
    8: "secrets in logs and errors",
    9: "bombs",
    10: "memory without bound",
    11: "ways around the accounts",
    12: "counters that leak",
    13: "breakers tripped by clients",
    14: "open metrics, names as markup",
    15: "who exists; keys that outlive their end",
    16: "poisoned releases",
    17: "keys that everybody knows",
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the fault matrix, the roles and the threats as far as they have run."""
    print_table(terminalreporter, "fault matrix", fault_cells(terminalreporter), COLUMNS)
    roles: dict[str, dict[str, str]] = {}
    for _, (route, kind, got) in properties(terminalreporter, ROLE_CELL):
        roles.setdefault(route, {})[kind] = got
    print_table(
        terminalreporter, "roles and routes", roles, list(dict.fromkeys(kind for row in roles.values() for kind in row))
    )
    print_table(terminalreporter, "threats", threat_cells(terminalreporter), ["tests", "passed", "failed"])


def fault_cells(terminalreporter: pytest.TerminalReporter) -> dict[str, dict[str, str]]:
    cells: dict[str, dict[str, str]] = {}
    for word, (row, mode, door) in properties(terminalreporter, CELL):
        cells.setdefault(row, {})[f"{mode} {door}"] = word
    return cells


def threat_cells(terminalreporter: pytest.TerminalReporter) -> dict[str, dict[str, str]]:
    """How many tests stand for each row of the threats, by the numbers in their names, and how they ended."""
    counts: dict[int, Counter[str]] = {}
    for result, report in reports(terminalreporter):
        for row in rows_named(report.nodeid):
            counts.setdefault(row, Counter())[RESULTS[result]] += 1
    return {
        f"{row:2} {THREATS[row]}": {
            "tests": str(sum(found.values())), "passed": str(found["ok"]), "failed": str(found["FAILED"])
        }
        for row, found in sorted(counts.items())
    }  # fmt: skip


def rows_named(nodeid: str) -> set[int]:
    """The rows in a test's name: ``test_row_2_…``, ``test_rows_3_and_4_…``, ``test_rows_3_to_5_and_15_…``."""
    named = ROWS.search(nodeid)
    if named is None:
        return set()
    rows: set[int] = set()
    for part in named[1].strip("_").split("_and_"):
        first, _, last = part.partition("_to_")
        rows |= set(range(int(first), int(last or first) + 1))
    return rows


def reports(terminalreporter: pytest.TerminalReporter) -> Iterator[tuple[str, pytest.TestReport]]:
    for result in RESULTS:
        for report in terminalreporter.stats.get(result, ()):
            # A file that cannot be collected has a report, too, but is no test.
            if isinstance(report, pytest.TestReport):
                yield result, report


def properties(terminalreporter: pytest.TerminalReporter, named: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for result, report in reports(terminalreporter):
        for name, value in report.user_properties:
            if name == named and isinstance(value, tuple):
                yield RESULTS[result], value


def print_table(
    terminalreporter: pytest.TerminalReporter, title: str, cells: dict[str, dict[str, str]], columns: list[str]
) -> None:
    if not cells:
        return
    width, wide = max(map(len, cells)), max(map(len, columns))
    terminalreporter.section(title)
    terminalreporter.write_line(" " * width + "".join(f"  {column:>{wide}}" for column in columns))
    for row, results in cells.items():
        told = "".join(f"  {results.get(column, '-'):>{wide}}" for column in columns)
        terminalreporter.write_line(f"{row:{width}}{told}")
