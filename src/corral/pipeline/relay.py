"""Passes a stream on to the client, in the callbacks of the upstream connection."""

from collections.abc import Callable

from corral.core.record import Record
from corral.pipeline.answer import Answer, Headers
from corral.pipeline.strand import Sink
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
        # What came before was another attempt's.
        self._waiting = True

    def tokens(self, reader: StreamReader) -> None:
        """Events have come; progress of the prompt, which a client can ask for, is no token."""
        if reader.token_events == self._record.token_events:
            return
        now = self._clock()
        if self._record.first_byte_at is None:
            self._record.first_byte_at = now
        if self._waiting:
            self._waiting = False
            self._reply.limit(self._between_tokens_s, "between_tokens")
        self._record.last_token_at = now
        self._record.token_events = reader.token_events


def to_client(answer: Answer) -> Sink:
    """Events for the client go to it; its answer starts with the first."""

    def pass_on(events: bytes) -> None:
        if not answer.started:
            answer.start(200, SSE_HEADERS)
        answer.write(events)

    return pass_on
