"""Reads the stream of a llama-server: takes out what is Corral's own, leaves the rest as it came."""

from typing import Any

import orjson

from corral.core import sse
from corral.core.call import Call, Endpoint
from corral.core.chunks import HAS_ERROR, HAS_FINISH, HAS_MODEL, HAS_PROGRESS, HAS_USAGE, NULL, UsageSum, usage_json
from corral.core.errors import BadReply, CorralError
from corral.core.usage import Usage
from corral.openai.errors import upstream_event_error

# Server-sent events may have these besides data (WHATWG HTML, section 9.2.6).
OTHER_LINES = (b"event:", b"id:", b"retry:", b":")


class StreamReader:
    """Sorts the events of one stream. One writer: the connection's callback, through ``read``.

    Comments and ``data: null`` are dropped. The usage chunks, which Corral asked
    for, are summed and come out as one before ``[DONE]`` if the client asked
    too; progress events come out only if it asked. ``failure`` is set when the
    stream tells of an error or is not what it should be.
    """

    def __init__(self, call: Call) -> None:
        self.done = False
        self.failure: CorralError | None = None
        self.token_events = 0
        self._call = call
        self._splitter = sse.Splitter()
        self._usage = UsageSum(call.n)
        self._usage_chunk: dict[str, Any] | None = None
        self._prompt = Usage()
        # (the model's name as llama-server writes it, as the client wrote it), learned from the first chunk.
        self._rename: tuple[bytes, bytes] | None = None
        # llama-server puts `timings` on the usage chunk when there is one; a
        # client that did not ask for it finds them on the finish chunk, which
        # therefore waits for the usage chunk behind it.
        self._holds_finish = call.endpoint is Endpoint.CHAT and not call.include_usage
        self._finish: bytes | None = None

    def read(self, piece: bytes) -> list[bytes]:
        """The events in ``piece`` that are for the client, ``[DONE]`` included."""
        passed: list[bytes] = []
        try:
            for event in self._splitter.feed(piece):
                self._sort(event, passed)
                if self.done or self.failure:
                    break
        except (CorralError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            self.failure = error if isinstance(error, CorralError) else _malformed()
        if self.failure:
            self._release_finish(passed)
        return passed

    def usage(self) -> Usage:
        """What was used: as reported, else estimated from what came."""
        if self._usage.reports >= self._call.tasks:
            return self._usage.total()
        return Usage(self._prompt.prompt_tokens, self._prompt.cached_tokens, self.token_events, estimated=True)

    def _sort(self, event: bytes, passed: list[bytes]) -> None:
        data = sse.payload(event)
        if data is None:
            if not event.startswith(OTHER_LINES):
                self.failure = _malformed()
        elif data == sse.DONE:
            self._end(passed)
        elif data != NULL:
            self._sort_chunk(event, data, passed)

    def _sort_chunk(self, event: bytes, data: bytes, passed: list[bytes]) -> None:
        if not (data.startswith(b"{") and data.endswith(b"}")):
            self.failure = _malformed()
        elif HAS_ERROR in data and (error := orjson.loads(data).get("error")):
            self.failure = upstream_event_error(error, self._call.endpoint)
        elif HAS_PROGRESS in data:
            self._take_progress(event, data, passed)
        elif HAS_USAGE in data:
            self._take_usage(orjson.loads(data), passed)
        else:
            self._pass(event, data, passed)

    def _pass(self, event: bytes, data: bytes, passed: list[bytes]) -> None:
        self.token_events += 1
        event = self._renamed(event, data)
        if self._holds_finish and HAS_FINISH in event:
            self._release_finish(passed)
            self._finish = event
        else:
            passed.append(event)

    def _renamed(self, event: bytes, data: bytes) -> bytes:
        """The event with the model's name as the client wrote it."""
        if self._rename is None:
            name = orjson.loads(data).get("model", self._call.model)
            asked = self._call.model or name
            self._rename = (HAS_MODEL + orjson.dumps(name), HAS_MODEL + orjson.dumps(asked))
        old, new = self._rename
        return event if old == new else event.replace(old, new, 1)

    def _take_progress(self, event: bytes, data: bytes, passed: list[bytes]) -> None:
        progress = orjson.loads(data)["prompt_progress"]
        self._prompt = Usage(prompt_tokens=progress["total"], cached_tokens=progress["cache"])
        if self._call.include_progress:
            passed.append(self._renamed(event, data))

    def _take_usage(self, chunk: dict[str, Any], passed: list[bytes]) -> None:
        """The usage chunk of a chat, or the finish chunk of a completion, which carries the usage itself."""
        if isinstance(chunk.get("usage"), dict):
            self._usage.add(chunk["usage"])
            self._usage_chunk = chunk
        if chunk["choices"]:
            self._pass(*_event(_without_usage(chunk)), passed)
        elif self._finish is not None and "timings" in chunk:
            finish = orjson.loads(sse.payload(self._finish) or b"{}")
            self._finish = _event(finish | {"timings": chunk["timings"]})[0]
            self._release_finish(passed)

    def _end(self, passed: list[bytes]) -> None:
        self.done = True
        self._release_finish(passed)
        if self._call.include_usage and self._usage_chunk is not None:
            total = usage_json(self._usage.total())
            model = self._call.model or self._usage_chunk.get("model")
            passed.append(_event(self._usage_chunk | {"choices": [], "model": model, "usage": total})[0])
        passed.append(sse.DONE_EVENT)

    def _release_finish(self, passed: list[bytes]) -> None:
        if self._finish is not None:
            passed.append(self._finish)
            self._finish = None


def _without_usage(chunk: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chunk.items() if key != "usage" or value is None}


def _event(chunk: dict[str, Any]) -> tuple[bytes, bytes]:
    data = orjson.dumps(chunk)
    return b"data: " + data + b"\n\n", data


def _malformed() -> BadReply:
    return BadReply("the model server sent a malformed event")
