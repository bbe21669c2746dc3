"""Server-sent events: cutting a byte stream into events, and reading one."""

from corral.core.errors import BadReply

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"

# One event of llama-server is a few hundred bytes; a megabyte of logprobs is
# the most a sound one holds. Beyond this a broken upstream would fill memory.
EVENT_LIMIT_BYTES = 16 * 1024 * 1024


class Splitter:
    """Cuts a stream into whole events, however the network cut it.

    Events come out as they came in, with their blank line, in order; CRLF and
    CR line ends become LF. What follows the last blank line waits for more.
    """

    __slots__ = ("_after_cr", "_rest", "_rest_bytes")

    def __init__(self) -> None:
        # The pieces of the event that is not whole yet.
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._after_cr = False

    @property
    def empty(self) -> bool:
        """No event is waiting for its end."""
        return not self._rest_bytes

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that ``piece`` completes; raises BadReply when one grows beyond the limit."""
        *events, _ = self.whole(piece).split(b"\n\n")
        # Blank lines before an event are legal and mean nothing.
        return [event.lstrip(b"\n") + b"\n\n" for event in events if event.strip(b"\n")]

    def whole(self, piece: bytes) -> bytes:
        """As ``feed``, but the events in one piece, with the blank lines before them."""
        if not self._rest_bytes and piece.endswith(b"\n\n") and b"\r" not in piece:
            # The LF of a CRLF that was cut counts as a blank line before the event.
            return piece
        piece = self._with_lf(piece)
        self._rest.append(piece)
        self._rest_bytes += len(piece)
        # A piece without a line end completes nothing; the pieces of a large event are put together once.
        events = self._cut() if b"\n" in piece else b""
        if self._rest_bytes > EVENT_LIMIT_BYTES:
            raise BadReply("the model server sent an event that is too large")
        return events

    def _with_lf(self, piece: bytes) -> bytes:
        if self._after_cr and piece:
            # The other half of a CRLF, whose CR has been taken for the line end already.
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" not in piece:
            return piece
        self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _cut(self) -> bytes:
        came = b"".join(self._rest)
        events, blank, rest = came.rpartition(b"\n\n")
        self._rest, self._rest_bytes = [rest], len(rest)
        return events + blank


def payload(event: bytes) -> bytes | None:
    """The data of a whole event, its lines joined by LF; None when it carries none, like a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def comment(text: str) -> bytes:
    """A comment: keeps a silent stream alive and means nothing to clients."""
    return b": " + text.encode() + b"\n\n"
