"""Reads .env and the environment: names become settings, unknown CORRAL_ names are refused."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv.parser import Original, parse_stream

from corral.config.describe import by_environment_name
from corral.config.names import CONFIG_FILE, KEY_NAMES, MODEL_NAMES
from corral.config.problems import Given, Problems, did_you_mean

PREFIX = "CORRAL_"

# What is no single setting keeps its name in the layer.
KEPT = frozenset({*KEY_NAMES, *MODEL_NAMES, CONFIG_FILE})


def read_environment(env: Mapping[str, str], problems: Problems) -> dict[str, Given]:
    """The settings in an environment. Other programs' names are none of our business, CORRAL_ ones are."""
    return _by_setting((Given(name, "environment", value) for name, value in env.items()), problems)


def read_dotenv(file: Path, content: str, problems: Problems) -> dict[str, Given]:
    """The settings in a .env file: NAME=VALUE lines with ``#`` comments and optional quotes; nothing is expanded."""
    return _by_setting(_lines(file, content, problems), problems)


def _lines(file: Path, content: str, problems: Problems) -> Iterator[Given]:
    first: dict[str, int] = {}
    for binding in parse_stream(io.StringIO(content)):
        line = _line_of(binding.original)
        # A line that is no assignment may be a bare key: it is not quoted.
        unnamed = Given(file.name, f"{file} line {line}", None)
        if binding.error or (binding.key and binding.value is None):
            problems.add(unnamed, "this is no assignment", "write NAME=VALUE, with quotes closed on the same line")
        elif binding.key:
            given = Given(binding.key, unnamed.source, binding.value)
            if first.setdefault(binding.key, line) != line and _is_ours(binding.key):
                problems.add(given, f"is set in line {first[binding.key]} too", "keep one of them")
            yield given


def _by_setting(found: Iterator[Given], problems: Problems) -> dict[str, Given]:
    """By setting path, or by name for what is no single setting. Empty values count as not given."""
    layer: dict[str, Given] = {}
    for given in found:
        if not str(given.value).strip():
            continue
        setting = by_environment_name().get(given.name)
        if setting is not None:
            _keep(layer, setting.path, given, problems)
        elif given.name in KEPT:
            layer[given.name] = given
        elif given.name.startswith(PREFIX):
            right = did_you_mean(given.name, (*by_environment_name(), *KEPT))
            problems.add(given, "there is no such setting", right)
    return layer


def _keep(layer: dict[str, Given], path: str, given: Given, problems: Problems) -> None:
    """A setting has up to two names; one source may use both only to say the same."""
    other = layer.setdefault(path, given)
    if other.value != given.value:
        problems.add(given, f"{other.name} sets the same to another value", "keep one of them")


def _is_ours(name: str) -> bool:
    return name in KEPT or name in by_environment_name()


def _line_of(original: Original) -> int:
    """The line of the statement itself; dotenv counts the empty lines before it in."""
    blank = len(original.string) - len(original.string.lstrip())
    return original.line + original.string.count("\n", 0, blank)
