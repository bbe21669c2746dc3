"""What a chat reply must look like."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from corral.openai.shapes import BY_TYPE, JsonObject, Wire


class TextFormat(Wire):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Wire):
    """A JSON object."""

    type: Literal["json_object"]
    object_schema: JsonObject | None = Field(default=None, alias="schema")
    """The schema it follows; llama-server's addition."""


class NamedSchema(Wire):
    """A JSON schema, wrapped as OpenAI does."""

    name: str | None = None
    description: str | None = None
    json_schema: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Accepted and without effect: llama-server is always strict."""


class JsonSchemaFormat(Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    BY_TYPE,
]
