"""The JSON shapes that the request models are made of, and how a union of shapes picks one branch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len, MaxLen
from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, GetCoreSchemaHandler, Strict, Tag
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function

# A union is decided by the JSON type of the value, so that a wrong value is
# reported once, by the branch it was meant for. The tags appear in Pydantic's
# error locations; the angle brackets tell them from the names of fields.
STRING = Tag("<string>")
ARRAY = Tag("<array>")
OBJECT = Tag("<object>")
NUMBER = Tag("<number>")
BOOLEAN = Tag("<boolean>")
TOKENS = Tag("<tokens>")

SHAPES: Mapping[type, str] = {
    str: "<string>",
    list: "<array>",
    dict: "<object>",
    int: "<number>",
    float: "<number>",
    bool: "<boolean>",
    # A tag that no union has: null is wrong by its type, like any other.
    type(None): "<null>",
}


def shape_of(value: object) -> str | None:
    """The tag of a JSON value's type; ``None`` for what is not JSON."""
    return SHAPES.get(type(value))


def prompt_shape_of(value: object) -> str | None:
    """As ``shape_of``, but an array that begins with a number is one tokenised prompt."""
    if type(value) is list and value and type(value[0]) in (int, float):
        return "<tokens>"
    return shape_of(value)


def item_shape_of(value: object) -> str | None:
    """Inside an array of prompts every array is a tokenised prompt."""
    return "<tokens>" if type(value) is list else shape_of(value)


def type_tag_of(value: object) -> str | None:
    """The tag of an object that names its kind under ``type``, as content parts and response formats do."""
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


BY_SHAPE = Discriminator(shape_of)
BY_PROMPT_SHAPE = Discriminator(prompt_shape_of)
BY_ITEM_SHAPE = Discriminator(item_shape_of)
BY_TYPE = Discriminator(type_tag_of)


class FirstOnly(FailFast):
    """Stop at the first wrong entry: a body of megabytes can hold millions of them."""

    # ``typing`` hashes the branches of a union.
    __hash__ = object.__hash__


FIRST_ONLY = FirstOnly()


@dataclass(frozen=True)
class AtMost:
    """Count an object's entries before they are looked at; ``MaxLen`` alone counts afterwards."""

    limit: int

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._count, handler(source))

    def _count(self, value: object) -> object:
        if isinstance(value, dict) and len(value) > self.limit:
            raise PydanticKnownError(
                "too_long", {"field_type": "Object", "max_length": self.limit, "actual_length": len(value)}
            )
        return value


# OpenAI allows four; llama-server has no limit of its own, so these only keep it cheap.
STOPS = 64
STOP_CHARS = 1024
LOGIT_BIASES = 4096

TokenIds = Annotated[list[Annotated[int, Ge(0)]], FIRST_ONLY, Len(1)]

StopString = Annotated[str, MaxLen(STOP_CHARS)]
Stop = Annotated[
    Annotated[StopString, STRING] | Annotated[list[StopString], FIRST_ONLY, MaxLen(STOPS), ARRAY],
    BY_SHAPE,
]

# ``false`` is llama-server's way to ban a token.
Bias = Annotated[
    Annotated[float, Ge(-100), Le(100), NUMBER] | Annotated[Literal[False], BOOLEAN],
    BY_SHAPE,
]
BiasedToken = Annotated[Annotated[int, Ge(0), NUMBER] | Annotated[str, STRING], BY_SHAPE]
# JSON has arrays only; a strict tuple would refuse them.
BiasPair = Annotated[tuple[BiasedToken, Bias], Strict(False)]
LogitBias = Annotated[
    Annotated[dict[str, Bias], MaxLen(LOGIT_BIASES), AtMost(LOGIT_BIASES), OBJECT]
    | Annotated[list[BiasPair], FIRST_ONLY, MaxLen(LOGIT_BIASES), ARRAY],
    BY_SHAPE,
]

JsonObject = dict[str, Any]


class Wire(BaseModel):
    """A piece of a request: strictly typed; fields that it does not know are let through."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)
