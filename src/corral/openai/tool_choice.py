"""Which tools llama-server is told of, and whether it must call one.

llama-server takes every ``tool_choice`` that is an object for ``auto``, without
a word (server-common.cpp): so the choice is made here, by sending it only the
tools that may be called.
"""

from typing import Any

from corral.core.errors import InvalidRequest
from corral.openai.complaints import INVALID_VALUE
from corral.openai.generation import refusal, without_nulls
from corral.openai.requests import ChatRequest
from corral.openai.tools import AllowedToolsChoice, NamedTool


def choose_tools(request: ChatRequest, fields: dict[str, Any]) -> bool:
    """Write the choice into ``fields``; true when the model may call a tool."""
    choice = request.tool_choice
    if not request.tools:
        _ensure_no_choice(choice)
        fields.pop("tools", None)
        fields.pop("tool_choice", None)
        return False
    fields["tools"] = [tool | {"function": without_nulls(tool["function"])} for tool in fields["tools"]]
    if isinstance(choice, NamedTool):
        _keep(fields, {choice.function.name: "tool_choice.function.name"}, "required")
    elif isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        names = {
            tool.function.name: f"tool_choice.allowed_tools.tools[{index}].function.name"
            for index, tool in enumerate(allowed.tools)
        }
        _keep(fields, names, allowed.mode)
    if choice != "none" and request.grammar is not None:
        raise refusal("grammar", "'grammar' cannot be used with 'tools'; leave one out, or set 'tool_choice' to 'none'")
    return choice != "none"


def _ensure_no_choice(choice: object) -> None:
    if choice not in (None, "none", "auto"):
        raise refusal("tool_choice", "'tool_choice' asks for a tool, but there are no 'tools'")


def _keep(fields: dict[str, Any], names: dict[str, str], mode: str) -> None:
    """Keep the named tools; ``names`` tells for each name the parameter it stands in."""
    known = {tool["function"]["name"] for tool in fields["tools"]}
    for name, param in names.items():
        if name not in known:
            raise InvalidRequest(f"'{param}' is not the name of one of the 'tools'", param=param, code=INVALID_VALUE)
    fields["tools"] = [tool for tool in fields["tools"] if tool["function"]["name"] in names]
    fields["tool_choice"] = mode
