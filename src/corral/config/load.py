"""Merges the sources of settings into one frozen ``Config``, or says everything that is wrong with them.

Precedence, from weak to strong, value by value:

    defaults < corral.yaml < .env < environment < command-line flags

corral.yaml is ``./corral.yaml`` if there is one, or the file that ``CORRAL_CONFIG`` or
``--config`` names; ``.env`` is ``./.env`` if there is one. Models are one value: the
strongest source that names any names them all. An empty value in .env or the
environment counts as not given. This order is explained to users in docs/configuration.md.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from corral.config.describe import by_path
from corral.config.environment import read_dotenv, read_environment
from corral.config.files import Files, Mark, files_named, marks_of
from corral.config.keys import FoundKey, read_keys
from corral.config.model_settings import ModelSettings
from corral.config.models import read_models
from corral.config.names import CONFIG_FILE, KEY_NAMES, KEYS, MODEL_FLAG, MODELS
from corral.config.problems import FLAG, Given, Layer, Problems, did_you_mean
from corral.config.report import report
from corral.config.safety import check_exposure
from corral.config.settings import Config
from corral.config.tenancy_settings import StoreSettings
from corral.config.yaml_file import read_yaml
from corral.core.errors import ConfigError

DEFAULT_FILE = Path("corral.yaml")
DEFAULT_DOTENV = Path(".env")

# The settings that are looked at beyond their own value.
HOST = "server.host"
ANY_MODEL = "any_model"
SERVER_BIN = "llama.server_bin"


def load(
    *,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    dotenv: Path | None = None,
    flags: Mapping[str, object] | None = None,
    files: Files | None = None,
) -> Config:
    """The settings in force. Raises ``ConfigError`` with all problems at once; no problem holds a secret.

    ``file`` and ``dotenv`` must exist when they are given; ``env`` is the process's own
    when not given. ``flags`` go by setting path (``server.port``), or ``models`` with the
    arguments of ``--model``; None and empty ones count as not given. ``files`` is told what was read.
    """
    problems = Problems()
    read: dict[Path, Mark] = {}
    layer = _merged(file, os.environ if env is None else env, dotenv, flags or {}, problems, read)
    read |= marks_of(files_named(layer))
    if files is not None:
        files.read = read
    keys = read_keys(layer, problems)
    models, any_model = read_models(layer, problems)
    config = _build(layer, keys, models, any_model, problems)
    _check_server_bin(config, layer, problems)
    _check_demand(config, layer, problems)
    if keys or not any(name in layer for name in KEY_NAMES):
        host = layer.get(HOST, Given(HOST, "default", config.server.host))
        check_exposure(config, host, keys, problems)
    if problems.lines:
        raise ConfigError(problems.lines)
    return config


def load_store(file: Path | None = None) -> StoreSettings:
    """Where keys and usage are kept; for commands that need no other settings, which may not be fit to serve.

    Raises ``ConfigError``.
    """
    problems = Problems()
    layer = _merged(file, os.environ, None, {}, problems, {})
    store = {path: given for path, given in layer.items() if path.startswith("store.")}
    settings = _build(store, (), Config().models, False, problems).store
    if problems.lines:
        raise ConfigError(problems.lines)
    return settings


def _merged(
    file: Path | None,
    env: Mapping[str, str],
    dotenv: Path | None,
    flags: Mapping[str, object],
    problems: Problems,
    read: dict[Path, Mark],
) -> Layer:
    """What was given, the strongest source of each setting; ``read`` gets the files."""
    lines = _read(dotenv, DEFAULT_DOTENV, Given("--env-file", FLAG, dotenv), problems, read)
    named = {**read_dotenv(*lines, problems), **read_environment(env, problems)}
    where = Given("--config", FLAG, file)
    if file is None and CONFIG_FILE in named:
        where = named[CONFIG_FILE]
        file = Path(str(where.value)).expanduser()
    text = _read(file, DEFAULT_FILE, where, problems, read)
    return {**read_yaml(*text, problems), **named, **_from_flags(flags, problems)}


def _read(
    file: Path | None, default: Path, given: Given, problems: Problems, read: dict[Path, Mark]
) -> tuple[Path, str]:
    """A file and its text; the default file may be missing."""
    path = default if file is None else file
    read |= marks_of([path])
    try:
        # A byte order mark would become part of the first name.
        return path, path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if file is not None:
            problems.add(given, f"there is no file {path}", "give the path of an existing file")
    except UnicodeDecodeError:
        problems.add(given, f"{path} is not UTF-8 text", "save it as UTF-8")
    except OSError as error:
        problems.add(given, f"{path} cannot be read ({error.strerror})", "give a file that Corral may read")
    return path, ""


def _from_flags(flags: Mapping[str, object], problems: Problems) -> dict[str, Given]:
    layer: dict[str, Given] = {}
    for path, value in flags.items():
        if value is None or value in ((), []):
            continue
        if path == MODELS:
            layer[MODEL_FLAG] = Given(MODEL_FLAG, FLAG, value)
        elif path in by_path():
            layer[path] = Given(path, FLAG, value)
        else:
            problems.add(Given(path, FLAG, None), "there is no such setting", did_you_mean(path, by_path()))
    return layer


def _build(
    layer: Layer, keys: Sequence[FoundKey], models: Sequence[ModelSettings], any_model: bool, problems: Problems
) -> Config:
    fixed = {KEYS: tuple(found.key for found in keys), MODELS: tuple(models)}
    values = {path: setting.value for path, setting in by_path().items()} | {ANY_MODEL: any_model}
    given = {path: entry.value for path, entry in layer.items() if path in values}
    try:
        return Config.model_validate(_tree(values | given | fixed))
    except ValidationError as error:
        details = error.errors(include_url=False)
    for detail in details:
        path = _path_of(detail["loc"])
        report(detail, layer[path], problems, example=by_path()[path].example)
        given.pop(path, None)
    # With the defaults in place of what is wrong, one run can go on and name every problem.
    return Config.model_validate(_tree(values | given | fixed))


def _tree(values: Mapping[str, object]) -> dict[str, Any]:
    """Values by path as the nested attributes of ``Config``."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        setting = by_path().get(path)
        *above, last = setting.attributes if setting else path.split(".")
        section = tree
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return tree


def _path_of(location: tuple[int | str, ...]) -> str:
    """The setting that Pydantic's location is in; no location is the rule of ``Config`` itself, about any_model."""
    for path, setting in by_path().items():
        if location[: len(setting.attributes)] == setting.attributes:
            return path
    return ANY_MODEL


def _check_server_bin(config: Config, layer: Layer, problems: Problems) -> None:
    binary = config.llama.server_bin
    if binary is not None and shutil.which(binary) is None:
        right = "give the path of an executable llama-server, or leave it out to use the one on the PATH"
        problems.add(layer[SERVER_BIN], f"there is no program {binary}", right)


def _check_demand(config: Config, layer: Layer, problems: Problems) -> None:
    """What is stopped, or not started at the start, has to come when it is asked for."""
    for number, model in enumerate(config.models):
        if model.file is None or model.starts_on_demand(config.fleet.on_demand):
            continue
        stopped = {"idle_ttl": bool(model.idle_ttl_s), "group": model.group is not None, "exclusive": model.exclusive}
        for name in (name for name, given in stopped.items() if given):
            right = f"set on_demand: true, or leave {name} out"
            problems.add(_field_of(layer, number, name), "the model would not be started again", right)
        if model.preload is False:
            right = "set on_demand: true, or leave preload out"
            problems.add(_field_of(layer, number, "preload"), "nothing would ever start the model", right)


def _field_of(layer: Layer, number: int, name: str) -> Given:
    """Where the settings file gives a field of a model."""
    entries = layer[MODELS].value if MODELS in layer else None
    sources = (
        entries[number].value if isinstance(entries, tuple) and number < len(entries) and entries[number].value else {}
    )
    return sources.get(name) or Given(f"{MODELS}[{number}].{name}", "default", None)
