"""Tools, and which of them a model may, must or must not call."""

from typing import Annotated, Literal

from annotated_types import Len, MaxLen
from pydantic import Tag

from corral.openai.shapes import BY_SHAPE, BY_TYPE, FIRST_ONLY, OBJECT, STRING, JsonObject, Wire

TOOLS = 512
FUNCTION_NAME_CHARS = 256

FunctionName = Annotated[str, Len(1, FUNCTION_NAME_CHARS)]


class Function(Wire):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    """What it does, for the model to know when to call it."""
    parameters: JsonObject | None = None
    """Its parameters as a JSON schema."""
    strict: bool | None = None
    """Accepted and without effect: llama-server always holds the arguments to the schema."""


class Tool(Wire):
    """A tool; llama-server knows functions only."""

    type: Literal["function"]
    function: Function


class NamedFunction(Wire):
    """A function by its name."""

    name: FunctionName


class NamedTool(Wire):
    """The model must call this tool."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Wire):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    """Whether the model may or must call one."""
    tools: Annotated[list[NamedTool], FIRST_ONLY, Len(1, TOOLS)]


class AllowedToolsChoice(Wire):
    """The model chooses among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoiceObject = Annotated[
    Annotated[NamedTool, Tag("<function>")] | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
    BY_TYPE,
]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], STRING] | Annotated[ToolChoiceObject, OBJECT],
    BY_SHAPE,
]

Tools = Annotated[list[Tool], FIRST_ONLY, MaxLen(TOOLS)]
