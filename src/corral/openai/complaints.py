"""Pydantic's findings in plain English: which parameter, what is wrong, what would be right."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from corral.core.errors import InvalidRequest

MISSING = "missing_required_parameter"
INVALID_TYPE = "invalid_type"
INVALID_VALUE = "invalid_value"
UNSUPPORTED = "unsupported_parameter"

# Names are shown, but a client makes up the keys of some objects.
KEY_CHARS = 64
PARAM_CHARS = 200
NUMBER_CHARS = 24

# What Pydantic expected, by the type of its error.
EXPECTED: Mapping[str, str] = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

# The bound that was missed, by the type of Pydantic's error: its name in the context, and the words.
BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than_equal": ("ge", "{} or more"),
    "less_than_equal": ("le", "{} or less"),
}

LENGTHS: Mapping[str, str] = {
    "too_long": "must have at most {} entries",
    "string_too_long": "must have at most {} characters",
}

SHAPE_WORDS: Mapping[str, str] = {
    "<string>": "a string",
    "<array>": "an array",
    "<tokens>": "an array of token ids",
    "<object>": "an object",
    "<number>": "a number",
    "<boolean>": "false",
}

KINDS: Mapping[type, str] = {
    str: "a string",
    list: "an array",
    dict: "an object",
    int: "an integer",
    float: "a number with a fraction",
    bool: "true or false",
    type(None): "null",
}


def complaint(error: ValidationError) -> InvalidRequest:
    """The first finding as our own error. Values of the client are not repeated, numbers aside."""
    first = error.errors(include_url=False)[0]
    param = param_of(first["loc"])
    kind = first["type"]
    if kind == "missing":
        return InvalidRequest(f"'{param}' is required", param=param, code=MISSING)
    if kind.startswith("union_tag"):
        return _wrong_branch(first, param)
    if kind in EXPECTED:
        return _wrong_type(param, EXPECTED[kind], first["input"])
    return _wrong_value(first, param)


def param_of(location: tuple[int | str, ...]) -> str:
    """``messages[0].content`` for the location ``("messages", 0, "<array>", "content")``."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not _is_tag(step):
            path += f".{shown(step)}" if path else shown(step)
    return path[:PARAM_CHARS]


def shown(key: str) -> str:
    """A client's own key, fit to stand in an error: short and printable."""
    return "".join(char if char.isprintable() else "?" for char in key[:KEY_CHARS])


def _is_tag(step: str) -> bool:
    # "[key]" is how Pydantic points at a key instead of its value.
    return (step.startswith("<") and step.endswith(">")) or step == "[key]"


def _wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    found = KINDS.get(type(value), "something else")
    return InvalidRequest(f"'{param}' must be {expected}, not {found}", param=param, code=INVALID_TYPE)


def _wrong_branch(error: ErrorDetails, param: str) -> InvalidRequest:
    """No branch of a union takes the value: by its JSON type, or by its field ``type``."""
    value = error["input"]
    tags = error.get("ctx", {}).get("expected_tags", "").replace("'", "").split(", ")
    if all(tag in SHAPE_WORDS for tag in tags):
        return _wrong_type(param, _alternatives([SHAPE_WORDS[tag] for tag in tags]), value)
    if not isinstance(value, dict):
        return _wrong_type(param, "an object", value)
    return _wrong_kind(f"{param}.type", value, [f"'{tag.strip('<>')}'" for tag in tags])


def _wrong_kind(param: str, value: dict[str, Any], kinds: list[str]) -> InvalidRequest:
    if "type" not in value:
        return InvalidRequest(f"'{param}' is required", param=param, code=MISSING)
    if not isinstance(value["type"], str):
        return _wrong_type(param, "a string", value["type"])
    return InvalidRequest(f"'{param}' must be {_alternatives(kinds)}", param=param, code=INVALID_VALUE)


def _wrong_value(error: ErrorDetails, param: str) -> InvalidRequest:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        what = f"must be {words.format(f'{context[key]:g}')}{_not(value)}"
    elif kind in LENGTHS:
        what = LENGTHS[kind].format(context["max_length"])
    elif kind in ("too_short", "string_too_short"):
        what = "must not be empty" if not value else f"must have at least {context['min_length']} entries"
    elif kind == "literal_error":
        return _wrong_literal(context["expected"], param, value)
    else:
        what = f"is not valid: {error['msg'][:PARAM_CHARS]}"
    return InvalidRequest(f"'{param}' {what}", param=param, code=INVALID_VALUE)


def _wrong_literal(expected: str, param: str, value: object) -> InvalidRequest:
    # The only literal that is not a string: a logit bias of false.
    expected = "a number or false" if expected == "False" else expected
    if not isinstance(value, str):
        return _wrong_type(param, expected, value)
    return InvalidRequest(f"'{param}' must be {expected}", param=param, code=INVALID_VALUE)


def _alternatives(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _not(value: object) -> str:
    number = str(value) if isinstance(value, int | float) else ""
    return f", not {number}" if 0 < len(number) <= NUMBER_CHARS else ""
