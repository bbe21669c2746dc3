"""Rows of the threat list about things that Corral does not have: kept by their absence, until they are there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.config import load
from corral.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src/corral").rglob("*.py"))

# The library, and the row that it would open.
ABSENT = {
    "sqlite3": 1,
    "psycopg": 1,
    "jwt": 5,
    "jose": 5,
    "itsdangerous": 15,
    "multipart": 9,
    "python_multipart": 9,
    "jinja2": 3,
    "pickle": 3,
    "marshal": 3,
    "shelve": 3,
    "xml": 9,
    "requests": 7,
    "httpx": 7,
}


def imports(file: Path) -> Iterator[str]:
    """The names that a file imports, in full."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def calls(file: Path) -> Iterator[str]:
    """The plain names that a file calls."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


@pytest.mark.parametrize("library", ABSENT)
def test_a_library_that_would_open_a_row_is_not_used(library: str) -> None:
    assert [file.name for file in SOURCES if library in {name.partition(".")[0] for name in imports(file)}] == []


STORE = ROOT / "src/corral/store"
SQL = {"sqlalchemy", "asyncpg", "aiosqlite"}
RUN = ("text", "execute", "exec_driver_sql", "executemany")
MIXED = ("format", "join", "replace")


def test_row_1_only_the_store_speaks_sql() -> None:
    speaking = {file for file in SOURCES if SQL & {name.partition(".")[0] for name in imports(file)}}
    assert speaking
    assert [file for file in speaking if not file.is_relative_to(STORE)] == []


def test_row_1_no_sql_is_put_together_from_text() -> None:
    """Values are parameters: what is run is written out, built by SQLAlchemy, or made of constants at import."""
    assert [place for file in STORE.rglob("*.py") for place in mixed_sql(file)] == []


def mixed_sql(file: Path) -> Iterator[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for function in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and node.args and called(node) in RUN and is_mixed(node.args[0]):
                yield f"{file.name}:{node.lineno}"


def is_mixed(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.BinOp) or called(node) in MIXED


def called(node: ast.AST) -> str:
    """The last name of what is called; "" for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_row_3_nothing_that_serves_requests_can_run_a_program() -> None:
    serving = [ROOT / "src/corral" / part for part in ("web", "pipeline", "openai", "observe", "core")]
    for file in (file for folder in serving for file in folder.rglob("*.py")):
        assert not {"subprocess", "pty", "ctypes"} & set(imports(file)), file
    for file in SOURCES:
        assert not {"eval", "exec", "compile", "__import__"} & set(calls(file)), file


def test_row_3_no_program_is_run_through_a_shell() -> None:
    assert [
        file.name for file in SOURCES if re.search(r"shell\s*=\s*True|os\.system|os\.popen", file.read_text())
    ] == []


def test_row_6_keys_are_compared_in_constant_time() -> None:
    assert "hmac" in set(imports(ROOT / "src/corral/pipeline/authenticate.py"))


def test_row_16_the_locks_pin_everything_by_hash_and_the_build_has_no_hooks() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        pins = re.findall(r"^[A-Za-z0-9._\[\]-]+==", text, re.MULTILINE)
        assert pins
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert not (ROOT / "setup.py").exists()
    assert "hooks" not in project["tool"]["hatch"].get("build", {})


@pytest.mark.parametrize("key", ["local", "sk-1234", "secret-api-key", "changeme", "key_a", "test"])
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_API_KEYS", "OPERATOR_API_KEY"])
def test_row_17_a_key_that_everybody_knows_is_not_accepted_off_loopback(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No .env and no corral.yaml there.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load(env={name: key}, flags={"server.host": "0.0.0.0"})
    assert any(problem.startswith(name) for problem in refused.value.problems)
    assert load(env={name: key}).auth.keys
