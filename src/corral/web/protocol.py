"""uvicorn's connection to a client, with the limits and the manners that it lacks."""

import asyncio
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from corral.core.errors import HeadTooLarge, InvalidRequest, RequestError
from corral.openai.errors import error_body

# nginx takes 32 KiB, llama-server 8 KiB a line; ten times a sound request's head.
HEAD_LIMIT_BYTES = 64 * 1024

INVALID_HTTP = "invalid_http"
REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


def limited_protocol(stall_s: float) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn; a client that takes nothing for ``stall_s`` is cut off."""

    class Limited(Protocol):
        client_stall_s = stall_s

    return Limited


class Protocol(HttpToolsProtocol):
    """One connection. Writers: its transport's and its parser's callbacks.

    uvicorn closes a connection once everything is sent, which a client that
    does not read would put off for ever, and the shutdown with it. It bounds
    no head, and answers what is not HTTP in plain text.
    """

    client_stall_s: float
    _stall: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # Starts anew when the head is complete, and counts no second head in the same piece.
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"the request's head is larger than {HEAD_LIMIT_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's words, where OpenAI's shape is due)
        self._refuse(InvalidRequest("this is not HTTP/1.1 as RFC 9112 defines it", code=INVALID_HTTP))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.client_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        super().connection_lost(exc)

    def _refuse(self, error: RequestError) -> None:
        """Answer and close; where an answer is under way already, only close."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_answer(error))
        self.transport.close()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()


def _answer(error: RequestError) -> bytes:
    body = error_body(error)
    lines = (
        b"HTTP/1.1 %d %b" % (error.status, REASONS[error.status]),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
        b"x-request-id: req_" + uuid.uuid4().hex.encode(),
    )
    return b"\r\n".join((*lines, b"", body))
