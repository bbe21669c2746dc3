"""The stream of one call, over all the attempts that it takes."""

from collections.abc import Callable
from dataclasses import replace

import orjson

from corral.core import sse
from corral.core.call import Call, Endpoint
from corral.core.chunks import usage_json
from corral.core.errors import ConnectionLost
from corral.core.joint import Joint
from corral.core.resume import going_on, limited, told_text
from corral.core.transcript import Said, Transcript
from corral.core.usage import Usage
from corral.pipeline.stream import StreamReader
from corral.upstream.wire import Reply

# Takes the events for the client.
Sink = Callable[[bytes], None]
# Told of each time that events came, before they are passed on.
Watch = Callable[[StreamReader], None]


class Strand:
    """What has come of an answer, and what the next attempt is to ask for. One writer: the attempts, one at a time.

    An attempt that breaks off leaves the strand to the next: that one begins
    anew (``begin``) or, once ``break_off`` has said that it can, goes on
    (``resume``) where the text ends.
    """

    def __init__(
        self,
        call: Call,
        open_sink: Callable[[], Sink],
        *,
        folds: bool = False,
        on_end: Callable[[Usage], None] = lambda _: None,
    ) -> None:
        """``open_sink`` is called whenever the stream begins; ``folds``: as for StreamReader.

        ``on_end`` is told what the whole answer took, just before the sink gets the end of it.
        """
        self._first = call
        self._open_sink = open_sink
        self._on_end = on_end
        self._folds = folds
        self.begin()

    def begin(self) -> None:
        """Forget what has come; it has not reached the client."""
        self.call = self._first
        self._transcript = Transcript() if self.call.tasks == 1 else None
        self._reader = StreamReader(self.call, folds=self._folds, transcript=self._transcript)
        self._said: Said | None = None
        self._joint: Joint | None = None
        # How many tokens had been made could not be found out.
        self._guessed = False
        self._sink = self._open_sink()

    @property
    def events(self) -> int:
        """How many events have come that hold something of the answer."""
        return self._reader.token_events

    @property
    def said(self) -> Said | None:
        """What the next attempt is to go on with; None when it is to begin."""
        return self._said

    @property
    def usage(self) -> Usage:
        """What the whole answer has taken so far."""
        usage = self._reader.usage()
        return replace(usage, estimated=True) if self._guessed else usage

    @property
    def attempt_usage(self) -> Usage:
        """What the last attempt has taken of it: nothing when it was not even sent."""
        if self._said is None:
            return self.usage
        return Usage() if self._joint is None else self._joint.usage

    @property
    def went_on(self) -> bool:
        """The last attempt was to go on, and has added to what was said."""
        if self._said is None:
            return False
        return self._reader.done or (self._joint is not None and self._joint.usage.completion_tokens > 0)

    def break_off(self) -> bool:
        """The attempt has failed; True when the next one can go on where it ended."""
        said = self._transcript.said() if self._transcript is not None and self.events else None
        call = None if said is None else going_on(self._first, said)
        if call is not None:
            self.call, self._said, self._joint = call, said, None
        return call is not None

    def resume(self, counted: int | None) -> bool:
        """Go on; False when there is nothing left to ask for, and the stream has been brought to its end.

        ``counted``: the tokens of the text so far as the vocabulary has them, None if nobody could tell.
        """
        said = self._said or Said()
        # An event is a token at least; those that spell one character come as one.
        tokens = max(self._text_events(said), counted or 0)
        # What was counted is all of the text; that it could not be counted before matters no more.
        self._guessed = counted is None and bool(said.text)
        self._reader.go_on()
        left = self._first.max_tokens - tokens
        if said.finish is not None or (left <= 0 and said.text):
            self._end(said, tokens)
            return False
        told = Said()
        if said.text:
            self.call, told = limited(self.call, left), told_text(self.call, said)
        self._joint = Joint(said, told, tokens, self._reader.prompt)
        return True

    async def splice(self, reply: Reply, watch: Watch) -> None:
        """Pass the reply on, in the connection's callbacks, to its end; raises what broke it."""
        reader, sink, joint = self._reader, self._sink, self._joint

        def feed(piece: bytes) -> bool:
            if events := reader.read(piece):
                watch(reader)
                self._pass(events)
            if reader.failure is not None:
                raise reader.failure
            if reader.done:
                # llama-server closes it anyway.
                reply.finish()
            return reader.alive

        def feed_chunk(chunk: bytes) -> bool:
            if events := reader.read_chunk(chunk):
                watch(reader)
                sink(events)
            return bool(events)

        if joint is None:
            await reply.splice(feed, feed_chunk)
        else:
            await reply.splice(lambda piece: feed(joint.read(piece)) or joint.alive)
        if not reader.done:
            # It was cut, and is no success.
            raise ConnectionLost("the model server ended its reply before it was complete")

    def _pass(self, events: bytes) -> None:
        if self._reader.done:
            self._on_end(self.usage)
        self._sink(events)

    def _text_events(self, said: Said) -> int:
        # The role came first, in a chunk of its own.
        role = self.call.endpoint is Endpoint.CHAT
        return max(0, self._reader.token_events - role - (said.finish is not None))

    def _end(self, said: Said, tokens: int) -> None:
        """Nothing is missing but the last words of a stream: say them."""
        prompt = self._reader.prompt
        usage = usage_json(Usage(prompt.prompt_tokens, prompt.cached_tokens, tokens))
        chat = self.call.endpoint is Endpoint.CHAT
        last: list[dict[str, object]] = []
        if said.finish is None:
            empty: dict[str, object] = {"delta": {}} if chat else {"text": ""}
            last.append({"choices": [{"finish_reason": "length", "index": 0, **empty}], **said.identity})
        if prompt.prompt_tokens and not self._reader.told_usage:
            if not chat and last:
                last[-1]["usage"] = usage
            else:
                last.append({"choices": [], **said.identity, "usage": usage})
        events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in last)
        if passed := self._reader.read(events + sse.DONE_EVENT):
            self._pass(passed)
