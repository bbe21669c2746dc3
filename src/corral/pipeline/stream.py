"""Reads the stream of a llama-server: takes out what is Corral's own, leaves the rest as it came."""

from typing import Any

import orjson

from corral.core import sse
from corral.core.call import Call, Endpoint
from corral.core.chunks import HAS_ERROR, HAS_FINISH, HAS_MODEL, HAS_PROGRESS, HAS_USAGE, NULL, UsageSum, usage_json
from corral.core.errors import BadReply, CorralError
from corral.core.shape import Shape
from corral.core.transcript import Transcript
from corral.core.usage import Usage
from corral.openai.errors import upstream_event_error

# Server-sent events may have these besides data (WHATWG HTML, section 9.2.6).
OTHER_LINES = (b"event:", b"id:", b"retry:", b":")
# When so many chunks in turn had each a shape of its own (logprobs, choices that come by turns), the rest will too.
SHAPES_IN_VAIN = 8


class StreamReader:
    """Sorts the events of one stream. One writer: the connection's callback, through ``read``.

    Comments and ``data: null`` are dropped. The usage chunks, which Corral asked
    for, are summed and come out as one before ``[DONE]`` if the client asked
    too; progress events come out only if it asked. ``failure`` is set when the
    stream tells of an error or is not what it should be.

    Chunks that differ in their text only are read together and pass together:
    as they came or, where the reader ``folds``, as one with the text of all. A
    ``transcript`` is told of all that passes.
    """

    def __init__(self, call: Call, *, folds: bool = False, transcript: Transcript | None = None) -> None:
        self.done = False
        self.failure: CorralError | None = None
        self.token_events = 0
        # What was read last shows that the model is at work, which a comment does not.
        self.alive = False
        self._call = call
        self._folds = folds
        self._transcript = transcript
        # Of the last chunk with a text; not sought for any more when it was sought in vain too often.
        self._shape: Shape | None = None
        self._in_vain = 0
        self._splitter = sse.Splitter()
        self._usage = UsageSum(call.n)
        self._usage_chunk: dict[str, Any] | None = None
        # Its tokens, and how many of them were cached, as soon as they are told.
        self.prompt = Usage()
        # (the model's name as llama-server writes it, as the client wrote it), learned from the first chunk.
        self._rename: tuple[bytes, bytes] | None = None
        # llama-server puts `timings` on the usage chunk when there is one; a
        # client that did not ask for it finds them on the finish chunk, which
        # therefore waits for the usage chunk behind it.
        self._holds_finish = call.endpoint is Endpoint.CHAT and not call.include_usage
        self._finish: bytes | None = None

    def read(self, piece: bytes) -> bytes:
        """The events in ``piece`` that are for the client, ``[DONE]`` included."""
        self.alive = False
        passed: list[bytes] = []
        try:
            self._read(self._splitter.whole(piece), passed)
        except (CorralError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            self.failure = error if isinstance(error, CorralError) else _malformed()
        if self.failure is not None:
            self._release_finish(passed)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def read_chunk(self, chunk: bytes) -> bytes:
        """The event for the client that an HTTP chunk holds, framed as it came, if it is one more of the last shape.

        Most tokens come in a piece of their own that is just that, and need nothing else of what
        ``read`` does. For any other piece it is nothing, and nothing has happened.
        """
        shape = self._shape
        if shape is None or self.done or self.failure is not None or not self._splitter.empty:
            return b""
        text = shape.text_of(chunk)
        if text is None:
            return b""
        self.alive = True
        self.token_events += 1
        self._in_vain = 0
        if self._transcript is not None:
            self._transcript.text(text)
        return shape.shown_of(text)

    def go_on(self) -> None:
        """What follows comes from another upstream, and is the rest of what this one has left off."""
        self.done, self.failure = False, None
        self._splitter, self._shape, self._in_vain = sse.Splitter(), None, 0

    @property
    def told_usage(self) -> bool:
        """The upstream has told what was used."""
        return self._usage.reports >= self._call.tasks

    def usage(self) -> Usage:
        """What was used: as reported, else estimated from what came."""
        if self.told_usage:
            return self._usage.total()
        return Usage(self.prompt.prompt_tokens, self.prompt.cached_tokens, self.token_events, estimated=True)

    def _read(self, events: bytes, passed: list[bytes]) -> None:
        start = 0
        while start < len(events) and not self.done and self.failure is None:
            shape = self._shape
            if shape is not None and (texts := shape.texts(events, start)):
                self._pass_row(shape, texts, passed)
                start += shape.came(texts)
            elif events.startswith(b"\n", start):
                # Blank lines before an event are legal and mean nothing.
                start += 1
            else:
                end = events.index(b"\n\n", start) + 2
                self._sort(events[start:end], passed)
                start = end

    def _pass_row(self, shape: Shape, texts: list[bytes], passed: list[bytes]) -> None:
        self.alive = True
        self.token_events += len(texts)
        self._in_vain = 0
        if self._transcript is not None:
            self._transcript.texts(texts)
        passed.append(shape.shown([b"".join(texts)] if self._folds else texts))

    def _sort(self, event: bytes, passed: list[bytes]) -> None:
        data = sse.payload(event)
        if data is None:
            if not event.startswith(OTHER_LINES):
                self.failure = _malformed()
        elif data == sse.DONE:
            self._end(passed)
        elif data != NULL:
            self.alive = True
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
            self._learn(event)

    def _learn(self, event: bytes) -> None:
        if self._in_vain < SHAPES_IN_VAIN and HAS_FINISH not in event and self._rename is not None:
            self._shape = Shape.of(event, self._rename)
            self._in_vain += 1
        else:
            self._shape = None

    def _pass(self, event: bytes, data: bytes, passed: list[bytes]) -> None:
        self.token_events += 1
        event = self._renamed(event, data)
        if self._transcript is not None:
            self._transcript.chunk(event)
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
        chunk = orjson.loads(data)
        progress = chunk.pop("prompt_progress")
        self.prompt = Usage(prompt_tokens=progress["total"], cached_tokens=progress["cache"])
        if self._call.include_progress:
            passed.append(self._renamed(event, data))
        elif any(map(_has_text, chunk.get("choices", ()))):
            # With the first of them llama-server repeats a message that it continues, if it is to.
            self._pass(*_event(chunk), passed)

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


def _has_text(choice: dict[str, Any]) -> bool:
    holder = choice.get("delta") or choice
    return any(holder.get(key) for key in ("content", "reasoning_content", "text"))


def _without_usage(chunk: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chunk.items() if key != "usage" or value is None}


def _event(chunk: dict[str, Any]) -> tuple[bytes, bytes]:
    data = orjson.dumps(chunk)
    return b"data: " + data + b"\n\n", data


def _malformed() -> BadReply:
    return BadReply("the model server sent a malformed event")
