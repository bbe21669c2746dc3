"""From the bytes of a body to a JSON object, or the reason why it is none."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson

from corral.core.errors import InvalidRequest
from corral.openai.complaints import INVALID_TYPE, INVALID_VALUE, shown

INVALID_JSON = "invalid_json"

# All fields of OpenAI and llama-server together are fewer than a hundred.
FIELDS = 512

# Objects and arrays in one body. Each costs microseconds to check, so a body of
# megabytes could otherwise hold up everybody for seconds; the longest
# conversations with the largest sets of tools have a third of this.
CONTAINERS = 65_536

# Of more than so many, Python's objects would take hundreds of megabytes and
# seconds to make: refused unread, so that no parameter can be named.
CONTAINERS_READ = 8 * CONTAINERS

STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def decode(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Of a key given twice the last counts, and only that one is sent on.

    orjson refuses what JSON has no place for and others let through: NaN,
    infinite numbers, lone surrogates, broken UTF-8, more than 1024 levels.
    """
    if not body.strip():
        raise InvalidRequest("the body is empty; send a JSON object", code=INVALID_JSON)
    brackets = _brackets(body)
    if brackets > CONTAINERS_READ and _brackets(STRING.sub(b"", body)) > CONTAINERS_READ:
        raise InvalidRequest(f"the body must have at most {CONTAINERS} objects and arrays in it", code=INVALID_VALUE)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"could not parse the JSON body: {error.msg} (line {error.lineno}, column {error.colno})",
            code=INVALID_JSON,
        ) from error
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object", code=INVALID_TYPE)
    if len(document) > FIELDS or brackets > CONTAINERS:
        _ensure_small(document)
    return document


def ensure_shallow(document: dict[str, Any], body: bytes, limit: int) -> None:
    """Refuse a body nested deeper than ``limit`` levels: what reads it later recurses."""
    # Most bodies have fewer brackets than they may have levels.
    if _brackets(body) <= limit:
        return
    for key, value in document.items():
        if next(islice(_levels(value), limit - 1, None), None):
            name = shown(key)
            raise InvalidRequest(f"'{name}' is nested deeper than {limit} levels", param=name, code=INVALID_VALUE)


def _ensure_small(document: dict[str, Any]) -> None:
    if len(document) > FIELDS:
        raise InvalidRequest(f"the body must have at most {FIELDS} fields", code=INVALID_VALUE)
    for key, value in document.items():
        if sum(len(level) for level in _levels(value)) > CONTAINERS:
            name = shown(key)
            message = f"'{name}' must have at most {CONTAINERS} objects and arrays in it"
            raise InvalidRequest(message, param=name, code=INVALID_VALUE)


def _brackets(body: bytes) -> int:
    """At least as many as there are objects and arrays: brackets in strings are counted too."""
    return body.count(b"{") + body.count(b"[")


def _levels(value: object) -> Iterator[list[Any]]:
    """The objects and arrays of each level of nesting, from the outermost; of a huge level only the beginning."""
    level = [value] if isinstance(value, dict | list) else []
    while level:
        yield level
        children = (
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        )
        level = list(islice(children, CONTAINERS + 1))
