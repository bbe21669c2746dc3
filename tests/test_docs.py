"""The documentation tells of everything there is, and of nothing that is not."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.main import get_command

from corral.assembly import Assembly
from corral.cli import app as command_line
from corral.config import load, settings_table
from corral.core import errors
from corral.openai import body, complaints
from corral.web import refusal
from support.run import async_test

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
API = (ROOT / "docs" / "api.md").read_text()

# What only operators see: it ends a command, and never answers a request.
OPERATORS_ONLY = (errors.ConfigError, errors.EngineError, errors.OperateError, errors.PullError)
# The codes that InvalidRequest is raised with.
INVALID = (
    complaints.MISSING,
    complaints.INVALID_TYPE,
    complaints.INVALID_VALUE,
    complaints.UNSUPPORTED,
    body.INVALID_JSON,
    refusal.INVALID_HTTP,
)

# Names of the environment that other programs read.
OTHERS_NAMES = {
    "ENABLE_OLLAMA_API",
    "OPENAI_API_BASE",
    "OPENAI_API_BASE_URL",
    "OPENAI_BASE_URL",
    "OPENAI_CHAT_MODEL",
    "OPENAI_ENDPOINT",
    "OPENAI_MODEL",
}
ENV_NAME = re.compile(r"\b(?:CORRAL|LLAMA|OPENAI|OPERATOR|MODEL|ENABLED?)_[A-Z][A-Z_]*[A-Z]\b")

# FastAPI's own, beside the page that is documented.
UNTOLD_ROUTES = {"/docs/oauth2-redirect"}

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def every(kind: type[errors.CorralError]) -> Iterator[type[errors.CorralError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from every(narrower)


def told_to_clients() -> list[type[errors.CorralError]]:
    classes = every(errors.CorralError)
    return [each for each in classes if each.code and not issubclass(each, OPERATORS_ONLY)]


def row(status: int, kind: str, code: str) -> str:
    """How the line of an error begins in the manual's tables."""
    return f"| {status} | `{kind}` | `{code}` |"


@pytest.mark.parametrize("error", told_to_clients(), ids=lambda error: error.__name__)
def test_every_error_that_clients_can_see_stands_in_the_manual(error: type[errors.CorralError]) -> None:
    assert row(error.status, error.type, error.code or "") in API


@pytest.mark.parametrize("code", INVALID)
def test_every_code_of_an_invalid_request_stands_in_the_manual(code: str) -> None:
    assert row(errors.InvalidRequest.status, errors.InvalidRequest.type, code) in API


def test_the_manual_tells_of_no_error_that_is_gone() -> None:
    told = {
        (int(status), kind, code) for status, kind, code in re.findall(r"^\| (\d+) \| `(\w+)` \| `(\w+)`", API, re.M)
    }
    known = {(error.status, error.type, error.code) for error in told_to_clients()}
    refused = {(400, "invalid_request_error", code) for code in (*INVALID, "invalid_request")}
    assert told == known | refused


@async_test
async def test_every_route_stands_in_the_manual() -> None:
    served = routes(Assembly(load(env={"OPERATOR_API_KEY": "key-of-operator"})).app)
    assert {"POST /v1/chat/completions", "GET /health", "GET /v1/models/{model}", "GET /docs"} <= served
    assert "POST /admin/models/{model}/load" in served
    assert {route for route in served if f"`{route}`" not in API} == set()


def routes(asgi: Any) -> set[str]:
    """Methods and paths of the application, those of FastAPI's own pages included."""
    app = asgi
    while not isinstance(app, FastAPI):
        app = app._app
    pages = {f"GET {route.path}" for route in app.routes if hasattr(route, "path") and route.path not in UNTOLD_ROUTES}
    return pages | {f"{method.upper()} {path}" for path, methods in described(app).items() for method in methods}


def described(app: FastAPI) -> dict[str, dict[str, Any]]:
    """The paths as /openapi.json has them; a converter such as ``{model:path}`` is nobody's business."""
    return {path.replace(":path}", "}"): methods for path, methods in app.openapi()["paths"].items()}


def commands() -> list[tuple[str, list[str]]]:
    """Every command that is shown, with all of its options."""
    return list(walk(get_command(command_line), "corral"))


def walk(command: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    for each, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from walk(inner, f"{name} {each}")
    if not hasattr(command, "commands"):
        flags = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        yield name, [max(option, key=len) for flag in flags for option in (flag.opts, flag.secondary_opts) if option]


COMMANDS = commands()


@pytest.mark.parametrize(("command", "options"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_stands_in_the_manual(command: str, options: list[str]) -> None:
    text = manual()
    assert command in text
    assert [option for option in options if not re.search(rf"{option}(?![\w-])", text)] == []


def test_the_commands_are_found() -> None:
    names = [name for name, _ in COMMANDS]
    assert {"corral serve", "corral pull", "corral engine start"} <= set(names)
    assert "--log-level" in dict(COMMANDS)["corral serve"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(CODE_BLOCK.sub("", page.read_text()))
    assert [link for link in links if not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    """Relative links only: whether the file is there, and the heading in it."""
    if re.match(r"[a-z]+:", link):
        return True
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    headings = HEADING.findall(CODE_BLOCK.sub("", page.read_text()))
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@cache
def manual() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def test_every_name_of_the_environment_is_one() -> None:
    known = {name for setting in settings_table() for name in setting.env_names} | OTHERS_NAMES
    assert set(ENV_NAME.findall(manual())) - known == set()


def test_the_settings_that_pages_name_are_there() -> None:
    sections = {setting.path.split(".")[0] for setting in settings_table() if "." in setting.path}
    paths = {setting.path for setting in settings_table()}
    named = set(re.findall(rf"`((?:{'|'.join(map(re.escape, sections))})\.[a-z_.]+[a-z])`", manual()))
    above = {path.rpartition(".")[0] for path in paths}
    assert named - paths - above == set()


@pytest.mark.parametrize("page", ["quickstart.md", "operations.md"])
def test_the_examples_in_python_can_be_read(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        compile(block, page, "exec")


def test_the_examples_of_env_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for page in ("quickstart.md", "operations.md"):
        for block in re.findall(r"^```env\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL):
            dotenv = tmp_path / "example.env"
            dotenv.write_text(block)
            load(env={}, dotenv=dotenv)
