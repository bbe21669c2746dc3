"""uvicorn's connection to a client, with the limits and the manners that it lacks."""

import logging
import uuid
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from corral.config import ServerSettings
from corral.core.errors import HeadTimeout, HeadTooLarge, InvalidRequest, RequestError
from corral.openai.errors import error_body
from corral.upstream.alarm import Alarm

log = logging.getLogger("corral")

# nginx takes 32 KiB, llama-server 8 KiB a line; ten times a sound request's head.
HEAD_LIMIT_BYTES = 64 * 1024
# What a client may send ahead of the answers it waits for. Beyond it the
# connection ends after the answer that is under way: to stop reading instead
# would hide that the client has left.
AHEAD_LIMIT_BYTES = 64 * 1024
# To close while a client still sends would reset the connection, and take the
# answer out of its hands; it gets this long to read it and to stop.
LINGER_S = 5.0

INVALID_HTTP = "invalid_http"
REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Protocol(HttpToolsProtocol):
    """One connection. Writers: its transport's and its parser's callbacks.

    uvicorn bounds no head and no waiting for one, stops reading when requests
    are pipelined, closes only once everything is sent, and answers what is not
    HTTP in plain text. Here one request is served at a time, and what the
    client sends ahead is kept raw until then; a client that has closed its
    side, half or whole, has left.
    """

    settings: ServerSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's)
        super().__init__(*args, **kwargs)
        self._alarm = Alarm(self.loop, self._ring)
        # The cycle whose answer is under way, or was the last; `cycle` is the one whose request is being read.
        self._running: Any = None
        # Between two requests, or within the head of the next.
        self._in_head = True
        self._head_bytes = 0
        self._ahead = bytearray()
        # Whatever comes now is not for us any more.
        self._deaf = False

    # Called by the transport.

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  (asyncio's base class is wider than what comes)
        super().connection_made(transport)
        self._alarm.set(self.settings.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._answering and (self._in_head or self.cycle is not self._running):
            self._keep(data)
        else:
            self._feed(data)

    def eof_received(self) -> None:
        """The client has closed its side. The transport closes ours, once what was written has left."""
        self._leave()
        self._alarm.set(self.settings.client_stall_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._alarm.stop()
        self._leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._alarm.set(self.settings.client_stall_s)

    # Called by the parser.

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too, and are dropped: who reads headers has read them.
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._in_head = False
        if self._head_bytes > HEAD_LIMIT_BYTES and self._size_of_head() > HEAD_LIMIT_BYTES:
            self._refuse(_head_too_large())
        else:
            self._head_bytes = 0
            self.open_cycle()

    def open_cycle(self) -> None:
        """The head of a request is complete: start serving it, or queue it behind the one that is served."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        # Only now uvicorn's own preparations, which cost more than the rest of the parsing.
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        # uvicorn stops reading when it queues.
        self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        if not self._deaf:
            super().on_message_complete()

    # Called by uvicorn.

    def _start_asgi_task(self, cycle: Any, app: ASGI3Application) -> None:  # noqa: ANN401  (the fast lane has its own)
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer has been written: go on with the next request, if there is to be one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._alarm.set(self.settings.client_stall_s)
        elif self._deaf or (self.cycle is self._running and not self._in_head):
            self._linger()
        elif not self._running.keep_alive:
            self._close()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._go_on()

    def shutdown(self) -> None:
        """Close when the answer that is under way is complete; at once where there is none."""
        if self._answering:
            self._running.keep_alive = False
        else:
            self._close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's words, where OpenAI's shape is due)
        self._refuse(InvalidRequest("this is not HTTP/1.1 as RFC 9112 defines it", code=INVALID_HTTP))

    def depart(self, cycle: Any) -> None:  # noqa: ANN401  (the fast lane has its own)
        """Tell a cycle that its client has left."""
        if not cycle.response_complete:
            cycle.disconnected = True
        cycle.message_event.set()

    @property
    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _feed(self, data: bytes) -> None:
        if self._in_head:
            if not self._head_bytes:
                self._alarm.set(self.settings.head_timeout_s)
            # Starts anew when the head is complete.
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing here is upgraded to: what follows is the next request.
            if rest := data[upgrade.args[0] :]:
                self._feed(rest)
        except httptools.HttpParserCallbackError:
            log.exception("a callback of the HTTP parser failed")
            self.transport.abort()
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES and not self._deaf:
            self._refuse(_head_too_large())

    def _keep(self, data: bytes) -> None:
        """Keep what was sent ahead, as long as it is little."""
        self._ahead += data
        if len(self._ahead) > AHEAD_LIMIT_BYTES:
            self._ahead.clear()
            self.pipeline.clear()
            self._deaf = True

    def _go_on(self) -> None:
        """Read the next request, which may be here already, in part or whole."""
        self.flow.resume_reading()
        self._alarm.set(self.settings.head_timeout_s if self._head_bytes else self.settings.keep_alive_s)
        if self._ahead:
            data = bytes(self._ahead)
            self._ahead.clear()
            self._feed(data)

    def _refuse(self, error: RequestError) -> None:
        """Answer and close; where another answer is under way, only close after that."""
        self._deaf = True
        self.pipeline.clear()
        if not self._answering:
            self.transport.write(_answer(error))
            self._linger()

    def _linger(self) -> None:
        """Say that nothing more will come, and read on for a while without listening."""
        self._deaf = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._alarm.set(LINGER_S)
        else:
            self._close()

    def _close(self) -> None:
        self.transport.close()
        self._alarm.set(self.settings.client_stall_s)

    def _ring(self) -> None:
        """The client took too long: to read, to stop, or to send a head."""
        if self.flow.write_paused or self.transport.is_closing():
            self.transport.abort()
        elif self._answering:
            return
        elif self._deaf:
            self.transport.abort()
        elif self._head_bytes:
            limit_s = self.settings.head_timeout_s
            self._refuse(HeadTimeout(f"the request's head did not arrive within {limit_s:g} s"))
        else:
            self._close()

    def _leave(self) -> None:
        """The client has left: nobody waits for what was asked on this connection."""
        self._deaf = True
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (*waiting, self._running, self.cycle):
            if cycle is not None:
                self.depart(cycle)

    def _size_of_head(self) -> int:
        # Each header has a colon, a space and a line end besides.
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the request's head is larger than {HEAD_LIMIT_BYTES} bytes")


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
