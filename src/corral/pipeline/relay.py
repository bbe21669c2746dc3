"""Passes a stream on to the client, in the callbacks of the upstream connection."""

from collections.abc import Callable

from corral.core.call import Call
from corral.core.errors import ConnectionLost, CorralError
from corral.core.record import Record
from corral.pipeline.answer import Answer, Headers
from corral.pipeline.stream import StreamReader
from corral.upstream.wire import Reply

SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would hold the stream back otherwise.
    (b"x-accel-buffering", b"no"),
]


class StreamWatch:
    """Notes when tokens come and sets the limit that holds until the next. One writer: the connection's callback."""

    def __init__(self, reply: Reply, record: Record, clock: Callable[[], float], between_tokens_s: float) -> None:
        self._reply = reply
        self._record = record
        self._clock = clock
        self._between_tokens_s = between_tokens_s

    def tokens(self, reader: StreamReader) -> None:
        """Events have come; progress of the prompt, which a client can ask for, is no token."""
        if not reader.token_events:
            return
        now = self._clock()
        if self._record.first_byte_at is None:
            self._record.first_byte_at = now
        if self._record.token_events == 0:
            self._reply.limit(self._between_tokens_s, "between_tokens")
        self._record.last_token_at = now
        self._record.token_events = reader.token_events


async def relay(reply: Reply, call: Call, answer: Answer, record: Record, watch: StreamWatch) -> None:
    """Pass the stream on to its end; sets the record's usage, however it ends.

    Raises what broke it: the client has got all that came before, and whether
    that was anything is told by ``answer.started`` and ``record.token_events``.
    """
    reader = StreamReader(call)

    def pass_on(events: bytes) -> None:
        watch.tokens(reader)
        if not answer.started:
            answer.start(200, SSE_HEADERS)
        answer.write(events)

    answer.watch(reply.pause, reply.resume)
    try:
        await splice(reply, reader, pass_on)
    finally:
        record.usage = reader.usage()
    ensure_done(reader)
    answer.end()


async def splice(reply: Reply, reader: StreamReader, take: Callable[[bytes], None]) -> None:
    """Let ``take`` have the events for the client, in the connection's callbacks; raises what broke the stream."""

    def feed(piece: bytes) -> bool:
        if events := reader.read(piece):
            take(events)
        if reader.failure is not None:
            raise reader.failure
        if reader.done:
            # llama-server closes it anyway.
            reply.finish()
        return reader.alive

    def feed_chunk(chunk: bytes) -> bool:
        if events := reader.read_chunk(chunk):
            take(events)
        return bool(events)

    await reply.splice(feed, feed_chunk)


def ensure_done(reader: StreamReader) -> None:
    """A stream that ended without ``[DONE]`` was cut, and is no success."""
    if not reader.done:
        error: CorralError = ConnectionLost("the model server ended its reply before it was complete")
        raise error
