"""The parsing of one HTTP/1.1 reply; no I/O."""

import httptools

from corral.core.errors import BadReply

# Of the status line and headers together; llama-server sends a few hundred.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200


class Message:
    """One reply as far as it has come. Written by the ``Reply`` that feeds it.

    Interim (1xx) replies are skipped, trailers dropped. What follows a
    complete reply is not looked at, but spoils the connection for another.
    """

    __slots__ = (
        "_bare_bytes",
        "_bodiless",
        "_head_bytes",
        "_parser",
        "begun",
        "complete",
        "fault",
        "head_complete",
        "headers",
        "keep_alive",
        "on_body",
        "pieces",
        "status",
    )

    def __init__(self, *, bodiless: bool = False) -> None:
        """``bodiless``: it answers a HEAD request."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        # Any byte at all has come.
        self.begun = False
        self.head_complete = False
        self.complete = False
        # The connection may carry another exchange; known when complete.
        self.keep_alive = False
        # Set instead of raised: what came before it in the same piece is still good.
        self.fault: BadReply | None = None
        self._bodiless = bodiless
        # The body that was not taken yet.
        self.pieces: list[bytes] = []
        # Called by httptools for each HTTP chunk, and there may be one for each token.
        self.on_body = self.pieces.append
        self._head_bytes = 0
        # Bytes that came since the last one of body: head, chunk sizes, trailers.
        self._bare_bytes = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take what came next; leaves body for ``take``, and the reason in ``fault`` when this is not HTTP."""
        self.begun = True
        if self._parser is None or self.complete:
            self.keep_alive = False
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._spoil(error)
        if self.pieces:
            self._bare_bytes = 0
        else:
            self._count_bare(len(data))

    def is_chunk(self, data: bytes) -> bool:
        """What was fed last was one whole chunk and nothing else, so that the next begins with what comes next."""
        # Had the parser been within a chunk, it would have taken the line of the size for body too.
        pieces = self.pieces
        return len(pieces) == 1 and data == b"%x\r\n%b\r\n" % (len(pieces[0]), pieces[0])

    def end(self) -> bool:
        """Take the end of the connection; tells whether the reply is whole.

        A body without a length ends with its connection. A transfer coding
        other than ``chunked`` would end so too, but no llama-server sends one,
        and to call a cut reply whole would be worse than to refuse it.
        """
        self.keep_alive = False
        if self.head_complete and not self.complete and self.fault is None:
            self.complete = not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        return self.complete

    @property
    def body_bytes(self) -> int:
        """How much body there is to take."""
        return sum(map(len, self.pieces))

    def take(self) -> bytes:
        """The body that came since the last time, in one piece."""
        pieces = self.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def stop(self) -> None:
        """Parse nothing more. The parser and its callbacks hold each other; this lets both go at once."""
        self._parser = None

    def _count_bare(self, came: int) -> None:
        self._bare_bytes += came
        if self._bare_bytes > MAX_HEAD_BYTES and not self.complete:
            self.fault = self.fault or BadReply("the model server's reply has more than 64 KiB of headers")

    def _spoil(self, error: Exception) -> None:
        self.keep_alive = False
        if self.complete:
            return
        # Only the headers' callbacks raise inside the parser.
        if isinstance(error, httptools.HttpParserCallbackError):
            self.fault = BadReply("the model server's reply has too many or too large headers")
        else:
            self.fault = BadReply("the model server's reply is not valid HTTP/1.1")
        self.fault.__cause__ = error

    # Called by httptools, in the order of the bytes.

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:
            return
        self.headers.append((name.lower(), value))
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        if self.head_complete or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        self._head_bytes += sum([len(name) + len(value) for name, value in self.headers])
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("head too large")
        if self.status < 200:
            self.headers.clear()
            return
        self.head_complete = True
        # The parser cannot be told that a reply has no body in spite of its
        # length; it is left behind here, so this connection is not used again.
        if self._bodiless:
            self._complete()

    def on_message_complete(self) -> None:
        if not self.head_complete or self.complete or self._parser is None:
            return
        self._complete()
        self.keep_alive = self._parser.should_keep_alive()

    def _complete(self) -> None:
        self.complete = True
        # What follows is not of this reply.
        self.pieces = self.pieces.copy()
