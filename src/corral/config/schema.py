"""The JSON schema of corral.yaml, for editors: made of the settings themselves and of how their values are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo

from corral.config import parameters, units, urls, values
from corral.config.describe import Setting, by_path, model_fields, remote_fields, written
from corral.config.model_settings import ModelSettings, RemoteSettings
from corral.config.models import REMOTE, UPSTREAMS
from corral.config.names import MODELS
from corral.config.settings import Config
from corral.config.yaml_file import SECRETS, UPSTREAM

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NULL = {"type": "null"}
TEXT = {"type": "string", "pattern": r"\S"}
NAME = {"type": "string", "pattern": rf"^\s*{values.MODEL_NAME.pattern}\s*$"}
URL = {"type": "string", "pattern": "^https?://"}
NUMBER = {"type": "number"}

# What makes a model: one of those that run already or one that is started, or one of each; and a name where there is
# no file to take it from.
RUNNING = (UPSTREAM, UPSTREAMS, REMOTE)
STARTED = ("file", "hf")
NAMED_BY = ("name", *STARTED)


def _any_of(*schemas: Mapping[str, Any]) -> Schema:
    return {"anyOf": [dict(schema) for schema in schemas]}


def _several(of: Mapping[str, Any]) -> Schema:
    """A list, or text whose entries are separated by commas."""
    return _any_of({"type": "array", "items": dict(of)}, TEXT)


def _by_name(of: Mapping[str, Any]) -> Schema:
    """A group of names and values, or text of pairs."""
    return _any_of({"type": "object", "additionalProperties": dict(of)}, TEXT)


def _amount(number: Mapping[str, Any], unit_names: Iterable[str]) -> Schema:
    """A bare number, or text with a unit in whatever case."""
    names = "|".join("".join(f"[{letter}{letter.upper()}]" for letter in name) for name in unit_names)
    return _any_of(number, {"type": "string", "pattern": rf"^\s*{units.DIGITS}\s*(?:{names})?\s*$"})


# By the function that reads a value: what it takes in a file, in the one spelling that people are told of.
READ_BY: Mapping[Callable[..., object], Schema] = MappingProxyType(
    {
        values.whole_number: {"type": "integer"},
        values.flag: _any_of({"type": "boolean"}, {"enum": [0, 1]}),
        values.text: TEXT,
        values.path: TEXT,
        values.model_name: NAME,
        values.paths_by_name: _by_name(TEXT),
        values.weights_by_client: _by_name(NUMBER | {"minimum": values.LEAST_WEIGHT, "maximum": values.MOST_WEIGHT}),
        units.seconds: _amount(NUMBER | {"maximum": units.LONGEST_S}, units.SECONDS),
        units.size: _amount({"type": "integer", "minimum": 0}, units.BYTES),
        urls.bind_host: TEXT,
        urls.origin: TEXT,
        urls.upstream_url: URL,
        parameters.fields: {"type": "object"},
        parameters.field_names: _several(TEXT),
    }
)
# What Pydantic reads itself. Of a secret that is the file that holds it.
UNREAD: Mapping[object, Schema] = MappingProxyType({float: NUMBER, str: TEXT, SecretStr: TEXT})


def settings_schema() -> Schema:
    """The schema. Unknown keys and secrets are refused; what only Corral can check (files, repeated names) is not."""
    return {"$schema": DIALECT, "title": "corral.yaml", **_section(Config, ())}


def _section(section: type[BaseModel], above: tuple[str, ...]) -> Schema:
    properties = {}
    for attribute, field in section.model_fields.items():
        attributes = (*above, attribute)
        path = ".".join(map(written, attributes))
        if path not in SECRETS:
            properties[written(attribute)] = _below(path, attributes, field)
    return {"description": section.__doc__, **_group(properties, ["object", "null"])}


def _below(path: str, attributes: tuple[str, ...], field: FieldInfo) -> Schema:
    if path == MODELS:
        return {"description": "The models.", "type": "array", "minItems": 1, "items": _model()}
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return _section(field.annotation, attributes)
    return _setting(field, by_path()[path])


def _model() -> Schema:
    settings = model_fields()
    replica = _entry(RemoteSettings, remote_fields())
    replicas = _any_of(URL, replica, {"type": "array", "items": _any_of(URL, replica)})
    properties = {
        UPSTREAM: {"description": "The URL of a llama-server that runs already.", **_or_null(URL)},
        REMOTE: {"description": settings[REMOTE].description, **_or_null(replicas)},
        **{name: _setting(_field(ModelSettings, each), each) for name, each in settings.items() if name != REMOTE},
    }
    return {
        **_group(properties, "object"),
        "allOf": [
            {"anyOf": [_given(name) for name in (*RUNNING, *STARTED)]},
            {"anyOf": [_given(name) for name in NAMED_BY]},
            *({"not": {"allOf": [_given(name) for name in pair]}} for pair in _pairs(RUNNING) + _pairs(STARTED)),
        ],
    }


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(combinations(names, 2))


def _entry(section: type[BaseModel], fields: Mapping[str, Setting]) -> Schema:
    properties = {name: _told(_field(section, each), each) for name, each in fields.items()}
    required = [name for name, each in fields.items() if _field(section, each).is_required()]
    return {**_group(properties, "object"), "required": required}


def _group(properties: Schema, kind: object) -> Schema:
    return {"type": kind, "additionalProperties": False, "properties": properties}


def _given(name: str) -> Schema:
    """It stands there, and null is as if it did not."""
    return {"required": [name], "properties": {name: {"not": NULL}}}


def _field(section: type[BaseModel], setting: Setting) -> FieldInfo:
    return section.model_fields[setting.attributes[-1]]


def _setting(field: FieldInfo, setting: Setting) -> Schema:
    """A value, or null, which counts as not given."""
    return _or_null(_told(field, setting))


def _told(field: FieldInfo, setting: Setting) -> Schema:
    """A value with its description and its default, as a file would spell it."""
    told: Schema = {"description": setting.description}
    if setting.default not in ("not set", "required"):
        bare = isinstance(setting.value, bool) or setting.default == str(setting.value)
        told["default"] = setting.value if bare and isinstance(setting.value, bool | int | float) else setting.default
    return told | _value(field.annotation, field.metadata)


def _or_null(schema: Mapping[str, Any]) -> Schema:
    match schema:
        case {"anyOf": choices}:
            return {**schema, "anyOf": [*choices, NULL]}
        case {"enum": words}:
            return {**schema, "enum": [*words, None]}
        case _:
            return {**schema, "type": [schema["type"], "null"]}


def _value(annotation: Any, metadata: Iterable[object]) -> Schema:  # noqa: ANN401  (a type)
    """What a type with its metadata takes in a file."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        return _value(annotation, [*_flat(inner), *metadata])
    if get_origin(annotation) is Literal:
        return {"enum": list(get_args(annotation))}
    if annotation is SecretStr:
        return UNREAD[annotation]
    readers = [each.func for each in metadata if isinstance(each, BeforeValidator)]
    if values.words in readers:
        return _several(_value(get_args(annotation)[0], ()))
    return _bounded(READ_BY[readers[0]] if readers else UNREAD[annotation], metadata)


def _flat(metadata: Iterable[object]) -> Iterator[object]:
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else (each,)


def _bounded(schema: Mapping[str, Any], metadata: Iterable[object]) -> Schema:
    """The same with the limits of a number, which is the first choice where there are several."""
    match schema:
        case {"anyOf": [number, *others]}:
            return {**schema, "anyOf": [_bounded(number, metadata), *others]}
        case {"type": "integer" | "number"}:
            return {**schema, **_limits(metadata)}
        case _:
            return dict(schema)


def _limits(metadata: Iterable[object]) -> Schema:
    limits: Schema = {}
    for each in metadata:
        match each:
            case Ge(ge=least):
                limits["minimum"] = least
            case Gt(gt=below):
                limits["exclusiveMinimum"] = below
            case Le(le=most):
                # The narrowest counts: a setting has a limit beside that of its kind.
                limits["maximum"] = min(most, limits.get("maximum", most))
    return limits
