"""Gateways in front of fakes, shared by the tests that make trouble, once for each door; each leaves them as before."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import Front, Narrow, Strict, write_settings
from support.gateway import Gateway
from support.leftovers import Leftovers
from support.talk import MODES

pytest.register_assert_rewrite("support.matrix")

# Nobody listens on it: port 1 belongs to a service that no machine runs any more.
NOBODY = "http://127.0.0.1:1"

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

MODELS = """\
models:
  - name: one
    upstream: {one.url}
  - name: two
    upstreams: [{left.url}, {right.url}]
  - name: away
    upstream: {nobody}
"""

SETTINGS = {
    "OPENAI_API_KEYS": "key-of-ann:ann,key-of-bob:bob",
    "OPERATOR_API_KEY": "key-of-operator",
    "CORRAL_LIMITS_REQUESTS": "0",
    "CORRAL_QUEUE_UNREADY_PATIENCE": "2s",
    "CORRAL_RETRIES_ATTEMPTS": "3",
    "CORRAL_RETRIES_BACKOFF": "20ms",
    # Completions are in a hurry, chats are not: what is to exceed a limit is asked as a completion.
    "CORRAL_TIMEOUTS_CHAT_CONNECT": "1s",
    "CORRAL_TIMEOUTS_COMPLETIONS_FIRST_BYTE": "1s",
    "CORRAL_TIMEOUTS_COMPLETIONS_BETWEEN_TOKENS": "1s",
    "CORRAL_TIMEOUTS_COMPLETIONS_TOTAL": "3s",
}


@pytest.fixture(scope="session", params=Door, ids=lambda door: door.value)
def door(request: pytest.FixtureRequest) -> Door:
    """The door of the shared gateways; a test that uses one of them runs for each, unless it is ``lane_only``."""
    door: Door = request.param
    return door


@pytest.fixture(scope="session")
def whole_front(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    with FakeLlama() as one, FakeLlama() as left, FakeLlama() as right:
        settings = write_settings(directory, MODELS.format(one=one, left=left, right=right, nobody=NOBODY))
        with Gateway(directory, door=door, check_idle=True, CORRAL_CONFIG=str(settings), **SETTINGS) as gateway:
            front = Front(gateway, one, left, right, Leftovers(gateway, ()))
            front.mend()
            yield replace(front, leftovers=Leftovers(gateway, front.fakes))


@pytest.fixture
def front(whole_front: Front) -> Iterator[Front]:
    """The shared gateway; after the test nothing is busy or left, and every exchange has left its one record."""
    yield whole_front
    whole_front.settle()


@pytest.fixture
def gateway(front: Front) -> Gateway:
    """The shared gateway, for tests that need nothing else of it."""
    return front.gateway


@pytest.fixture
def fake(front: Front) -> FakeLlama:
    """The fake behind model ``one``."""
    return front.one


NARROW_SETTINGS = {
    "CORRAL_LIMITS_REQUESTS": "0",
    "CORRAL_QUEUE_LENGTH": "3",
    # Long enough for three to come in on a busy machine, one after the other.
    "CORRAL_QUEUE_PATIENCE": "5s",
    "CORRAL_SERVER_CLIENT_STALL": "1s",
    "CORRAL_SERVER_COMMENT_INTERVAL": "200ms",
}


@pytest.fixture(scope="session")
def whole_narrow(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    directory = tmp_path_factory.mktemp("narrow")
    with FakeLlama(slots=1) as fake:
        settings = NARROW_SETTINGS | {"MODEL_UPSTREAMS": f"one={fake.url}"}
        with Gateway(directory, door=door, check_idle=True, **settings) as gateway:
            gateway.until_ready()
            yield Narrow(gateway, fake, Leftovers(gateway, [fake]))


@pytest.fixture
def narrow(whole_narrow: Narrow) -> Iterator[Narrow]:
    """A gateway in front of a single slot; after the test nothing is busy or left, each exchange has left a record."""
    yield whole_narrow
    whole_narrow.settle()


# Two keys of one client, one key each for others, and one without a client's name.
STRICT_KEYS = ",".join(
    ["key-1:twice", "key-2:twice", *(f"key-of-{name}:{name}" for name in Strict.CLIENTS), "nameless"]
)
STRICT_SETTINGS = {
    "OPENAI_API_KEYS": STRICT_KEYS,
    "OPERATOR_API_KEY": "key-of-operator",
    "CORRAL_LIMITS_REQUESTS": str(Strict.LIMIT),
    "CORRAL_LIMITS_WINDOW": f"{Strict.WINDOW_S}s",
    "CORRAL_QUEUE_UNREADY_PATIENCE": "100ms",
    "CORRAL_SERVER_BODY_SIZE": f"{Strict.BODY_BYTES}B",
    "CORRAL_SERVER_BODY_TIMEOUT": "1s",
    "CORRAL_SERVER_CORS_ORIGINS": Strict.ORIGIN,
}


@pytest.fixture(scope="session")
def whole_strict(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    directory = tmp_path_factory.mktemp("strict")
    with FakeLlama() as fake:
        settings = STRICT_SETTINGS | {"MODEL_UPSTREAMS": f"one={fake.url},away={NOBODY}"}
        with Gateway(directory, door=door, check_idle=True, **settings) as gateway:
            gateway.until_ready()
            yield Strict(gateway, fake)


@pytest.fixture
def strict(whole_strict: Strict) -> Iterator[Strict]:
    """A gateway with keys, limits and origins; after the test nothing is busy, each exchange has left its record."""
    yield whole_strict
    whole_strict.gateway.until_idle()
    whole_strict.fake.reset()


@pytest.fixture
def cell(door: Door, record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Tells which row and mode of the fault matrix the test is about; it is printed when all tests have run."""
    return lambda row, mode: record_property(CELL, (row, mode, door.value))


@pytest.fixture
def role_cell(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Tells what a kind of key got from a route; it is printed when all tests have run."""
    return lambda route, kind, got: record_property(ROLE_CELL, (route, kind, got))


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
