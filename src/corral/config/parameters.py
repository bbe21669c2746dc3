"""Request fields in the settings: which an operator may put in or leave out, and that their values can be sent."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from corral.config.problems import Mistake, shown
from corral.config.values import words
from corral.openai.complaints import complaint
from corral.openai.policy import OWNED
from corral.openai.requests import ChatRequest

# What Corral itself goes by when it reads a request: another value behind its back would make its answer wrong.
READ_BY_CORRAL = OWNED | {
    "messages",
    "prompt",
    "input",
    "encoding_format",
    "n",
    "n_probs",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "best_of",
    "echo",
    "modalities",
}

ANY_MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}


def fields(value: object) -> dict[str, Any]:
    """Names and values of request fields; each has to be what chat requests take."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise Mistake(f"{shown(value)} is not a group of request fields", "write name: value lines")
    _ensure_free(list(value))
    found = dict(value)
    try:
        orjson.dumps(found, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS)
        ChatRequest.model_validate(ANY_MESSAGES | found)
    except TypeError:
        raise Mistake(f"{shown(value)} cannot be written as JSON", "write texts, numbers, lists and groups") from None
    except ValidationError as error:
        told = complaint(error)
        raise Mistake(told.message, "write what a request may say") from None
    return found


def field_names(value: object) -> tuple[str, ...]:
    """Names of request fields that may be left out."""
    names = words(value)
    _ensure_free(names)
    return names


def _ensure_free(names: Sequence[str]) -> None:
    for name in names:
        if name in READ_BY_CORRAL:
            right = "set default_max_tokens" if "max" in name else "leave it out"
            raise Mistake(f"{name} is Corral's own and cannot be set or stripped here", right)
