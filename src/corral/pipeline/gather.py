"""Collects a stream into the one reply that llama-server would have sent whole."""

from typing import Any

import orjson

from corral.core import sse
from corral.core.call import Endpoint
from corral.core.chunks import usage_json
from corral.core.errors import BadReply
from corral.core.usage import Usage
from corral.pipeline.strand import Sink

# What a whole reply calls itself; its chunks have names of their own.
OBJECTS = {Endpoint.CHAT: "chat.completion", Endpoint.COMPLETIONS: "text_completion"}

# As much text as one reply may grow to: beyond any context there is.
GATHER_LIMIT_BYTES = 256 * 1024 * 1024


class Gathered:
    """A reply that is gathered, over all the attempts that it takes. One writer: the strand that has it.

    It knows nothing of the strand: two that hold one another are not freed before the collector comes by.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def body(self, usage: Usage) -> bytes:
        """The whole reply as JSON."""
        return orjson.dumps(self._gathering.reply() | {"usage": usage_json(usage)})

    def open(self) -> Sink:
        """Begin anew; what takes the events."""
        self._gathering = Gathering(self._endpoint)
        return self._gathering.add


class Gathering:
    """The choices of a reply as they grow. One writer: the stream's callback."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._shared: dict[str, Any] = {}
        self._choices: dict[int, Choice] = {}
        self._bytes = 0

    def add(self, events: bytes) -> None:
        """Take in whole events of the stream; raises BadReply when one is not what it should be."""
        try:
            for event in events.split(b"\n\n")[:-1]:
                self._add(sse.payload(event + b"\n\n") or b"")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise BadReply("the model server sent a malformed event") from error

    def reply(self) -> dict[str, Any]:
        """What has been gathered, without its usage."""
        choices = [choice.whole(self._endpoint) for _, choice in sorted(self._choices.items())]
        return {"choices": choices, **self._shared, "object": OBJECTS[self._endpoint]}

    def _add(self, data: bytes) -> None:
        if data == sse.DONE:
            return
        self._bytes += len(data)
        if self._bytes > GATHER_LIMIT_BYTES:
            raise BadReply("the model server's reply is too large")
        chunk = orjson.loads(data)
        for each in chunk.pop("choices"):
            self._choices.setdefault(each["index"], Choice(each["index"])).add(each)
        for own in ("usage", "prompt_progress"):
            chunk.pop(own, None)
        # `created` changes from second to second within one stream; a whole reply has the time of its end.
        self._shared.update(chunk)


class Choice:
    """One choice. One writer: its gathering."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._finish_reason: str | None = None
        self._texts: dict[str, list[str]] = {}
        self._tool_calls: dict[int, ToolCall] = {}
        self._logprobs: dict[str, list[Any]] = {}

    def add(self, piece: dict[str, Any]) -> None:
        """Take in one piece: the ``delta`` of a chat, the ``text`` of a completion."""
        self._finish_reason = piece.get("finish_reason") or self._finish_reason
        for key, value in (piece.get("delta") or {"text": piece.get("text")}).items():
            if key == "tool_calls":
                self._add_tool_calls(value)
            elif isinstance(value, str) and key != "role":
                self._texts.setdefault(key, []).append(value)
        for key, values in (piece.get("logprobs") or {}).items():
            self._logprobs.setdefault(key, []).extend(values)

    def whole(self, endpoint: Endpoint) -> dict[str, Any]:
        """The choice as a whole reply has it, with the keys in llama-server's order."""
        texts = {key: "".join(pieces) for key, pieces in self._texts.items()}
        if endpoint is Endpoint.COMPLETIONS:
            return {
                "text": texts.get("text", ""),
                "index": self._index,
                "logprobs": self._logprobs or None,
                "finish_reason": self._finish_reason,
            }
        logprobs = {"logprobs": self._logprobs} if self._logprobs else {}
        return {"finish_reason": self._finish_reason, "index": self._index, "message": self._message(texts)} | logprobs

    def _message(self, texts: dict[str, str]) -> dict[str, Any]:
        calls = [call.whole() for _, call in sorted(self._tool_calls.items())]
        # Also of a message that is nothing but tool calls (llama.cpp: common/chat.cpp, to_json_oaicompat).
        message: dict[str, Any] = {"role": "assistant", "content": texts.pop("content", "")}
        return message | texts | ({"tool_calls": calls} if calls else {})

    def _add_tool_calls(self, pieces: list[dict[str, Any]]) -> None:
        for piece in pieces:
            self._tool_calls.setdefault(piece["index"], ToolCall()).add(piece)


class ToolCall:
    """One tool call. One writer: its choice."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._name = ""
        self._arguments: list[str] = []

    def add(self, piece: dict[str, Any]) -> None:
        """Take in one piece: the first has id, type and name, each some of the arguments."""
        self._fields.update({key: value for key, value in piece.items() if key not in ("index", "function")})
        function = piece.get("function") or {}
        self._name = function.get("name") or self._name
        self._arguments.append(function.get("arguments") or "")

    def whole(self) -> dict[str, Any]:
        """The call as a whole reply has it."""
        function = {"name": self._name, "arguments": "".join(self._arguments)}
        rest = {key: value for key, value in self._fields.items() if key not in ("type", "id")}
        ids = {"id": self._fields["id"]} if "id" in self._fields else {}
        return {"type": self._fields.get("type", "function"), "function": function, **ids, **rest}
