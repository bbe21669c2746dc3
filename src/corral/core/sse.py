"""Server-sent events: cutting a byte stream into events, and reading one."""

from corral.core.errors import BadReply

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"

# One event of llama-server is a few hundred bytes; a megabyte of logprobs is
# the most a sound one holds. Beyond this a broken upstream would fill memory.
EVENT_LIMIT_BYTES = 16 * 1024 * 1024


class Splitter:
    """Cuts a stream into whole events, however the network cut it.

    Events come out as they came in, with their blank line, in order; CRLF line
    ends become LF. What follows the last blank line waits for more.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def rest(self) -> bytes:
        """The event that is not whole yet."""
        return self._rest

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that ``piece`` completes; raises BadReply when one grows beyond the limit."""
        joined = self._rest + piece if self._rest else piece
        if b"\r" in joined:
            joined = _with_lf(joined)
        # Blank lines before an event are legal and mean nothing.
        *events, self._rest = joined.split(b"\n\n")
        if len(self._rest) > EVENT_LIMIT_BYTES:
            raise BadReply("the model server sent an event that is too large")
        return [event.lstrip(b"\n") + b"\n\n" for event in events if event.strip(b"\n")]


def _with_lf(joined: bytes) -> bytes:
    # A CR at the very end may be half of a CRLF: it stays until its LF comes.
    return joined.replace(b"\r\n", b"\n")


def payload(event: bytes) -> bytes | None:
    """The data of a whole event, its lines joined by LF; None when it carries none, like a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def comment(text: str) -> bytes:
    """A comment: keeps a silent stream alive and means nothing to clients."""
    return b": " + text.encode() + b"\n\n"
