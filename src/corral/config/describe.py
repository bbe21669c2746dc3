"""Every setting with its names, default and meaning; docs, examples and the readers of sources go by this table."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from corral.config import units
from corral.config.model_settings import ModelSettings, RemoteSettings
from corral.config.names import (
    CONFIG_FILE,
    KEY_NAMES,
    KEYS,
    MODEL_FLAG,
    MODEL_NAMES,
    MODELS,
    SECRETS,
    environment_names,
)
from corral.config.settings import Config


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    ``path`` is its place in corral.yaml, ``attributes`` the way to it in ``Config``,
    ``env_names`` its environment names, the preferred one first. ``value`` is the default,
    ``default`` how corral.yaml would spell it, ``example`` a value that would do.
    """

    path: str
    attributes: tuple[str, ...]
    env_names: tuple[str, ...]
    value: object
    default: str
    example: str
    description: str
    # Secrets stand in the environment or .env, never in corral.yaml.
    secret: bool = False


def settings_table() -> list[Setting]:
    """Everything that can be set, in the order of ``Config``."""
    return [
        Setting("--config", (), (CONFIG_FILE,), None, "./corral.yaml", "./corral.yaml", "The settings file."),
        *by_path().values(),
        Setting(KEYS, ("auth", "keys"), KEY_NAMES, (), "not set", "KEY:CLIENT", "Keys of clients.", secret=True),
        Setting(MODELS, ("models",), MODEL_NAMES, None, "not set", "", f"The models; also by `{MODEL_FLAG}`."),
        *model_fields().values(),
        *remote_fields().values(),
    ]


@cache
def by_path() -> MappingProxyType[str, Setting]:
    """The settings that are a single value each: all but keys and models."""
    return MappingProxyType({setting.path: setting for setting in _walk(Config(), ()) if setting.path != KEYS})


@cache
def by_environment_name() -> MappingProxyType[str, Setting]:
    return MappingProxyType({name: setting for setting in by_path().values() for name in setting.env_names})


@cache
def model_fields() -> MappingProxyType[str, Setting]:
    """The settings of one entry under ``models``, by their name there."""
    return _entry_fields(ModelSettings, f"{MODELS}[]")


@cache
def remote_fields() -> MappingProxyType[str, Setting]:
    """The settings of one entry under ``remote`` of a model, by their name there."""
    return _entry_fields(RemoteSettings, f"{MODELS}[].remote[]")


@cache
def sections() -> frozenset[str]:
    """The paths under which settings stand: ``server``, ``timeouts``, ``timeouts.chat``, …"""
    paths = (path.split(".") for path in (*by_path(), KEYS))
    return frozenset(".".join(parts[:end]) for parts in paths for end in range(1, len(parts)))


def written(attribute: str) -> str:
    """An attribute as files and environment write it: without its unit."""
    if attribute.endswith("_bytes"):
        return attribute.removesuffix("_bytes") + "_size"
    return attribute.removesuffix("_s")


def _entry_fields(section: type[BaseModel], above: str) -> MappingProxyType[str, Setting]:
    found = {}
    for attribute, field in section.model_fields.items():
        value = "required" if field.is_required() else field.get_default()
        name = written(attribute)
        found[name] = _setting(f"{above}.{name}", (attribute,), (), value, field)
    return MappingProxyType(found)


def _walk(section: BaseModel, above: tuple[str, ...]) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value, attributes = getattr(section, name), (*above, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, attributes)
        elif attributes != (MODELS,):
            path = ".".join(written(part) for part in attributes)
            yield _setting(path, attributes, environment_names(path), value, field)


def _setting(
    path: str, attributes: tuple[str, ...], names: tuple[str, ...], value: object, field: FieldInfo
) -> Setting:
    default = _spelled(attributes[-1], value)
    example = str(field.examples[0]) if field.examples else default
    return Setting(path, attributes, names, value, default, example, field.description or "", path in SECRETS)


def _spelled(attribute: str, value: object) -> str:
    if value is None or value in ((), {}):
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and attribute.endswith("_s"):
        return units.format_seconds(value)
    if isinstance(value, int) and attribute.endswith("_bytes"):
        return units.format_size(value)
    return str(value)
