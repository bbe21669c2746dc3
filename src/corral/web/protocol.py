"""uvicorn's connection to a client, with the limits and the manners that it lacks."""

import logging
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from corral.config import ServerSettings
from corral.core.errors import CorralError, HeadTimeout
from corral.upstream.alarm import Alarm
from corral.web import head
from corral.web.cycle_wire import CycleWire
from corral.web.reader import Reader
from corral.web.refusal import head_too_large, not_http, refusal

log = logging.getLogger("corral")

# What a client may send ahead of the answers it waits for. Beyond it the connection ends after the answer that is
# under way: to stop reading instead would hide that the client has left.
AHEAD_LIMIT_BYTES = 64 * 1024
# What is read in one go may hold thousands of requests, each of which takes a hundred times its bytes.
AHEAD_LIMIT_REQUESTS = 100
# To close while a client still sends would reset the connection, and take the answer out of its hands; it gets
# this long to read it and to stop.
LINGER_S = 5.0


class Protocol(HttpToolsProtocol):
    """One connection. Writers: its transport's and its parser's callbacks.

    uvicorn bounds no head and no waiting for one, stops reading when requests are pipelined, closes only once
    everything is sent, and answers what is not HTTP in plain text. Here one request is served at a time, and what the
    client sends ahead is kept raw until then; a client that has closed its side, half or whole, has left.
    """

    settings: ServerSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's)
        super().__init__(*args, **kwargs)
        self._alarm = Alarm(self.loop, self._ring)
        # The cycle whose answer is under way, or was the last; `cycle` is the one whose request is being read.
        self._running: Any = None
        # Between two requests, or within the head of the next.
        self._in_head = True
        # What came since then; within a request, since the last bytes of its body.
        self._bare_bytes = 0
        # The answer is complete, and the next waits until the client has taken it.
        self._held = False
        self._ahead = bytearray()
        # Whatever comes now is not for us any more.
        self._deaf = False

    # Called by the transport.
    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  (asyncio's base class is wider than what comes)
        super().connection_made(transport)
        self._reader = Reader(transport, self.loop.time, self.settings.client_stall_s)
        self._alarm.set(self.settings.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._early:
            self._keep(data)
        else:
            self._feed(data)

    def eof_received(self) -> None:
        """The client has closed its side. The transport closes ours, once what was written has left."""
        self._leave()
        self._await_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._alarm.stop()
        self._leave()
        super().connection_lost(exc)
        # They know this connection: each would keep the other until the garbage is collected.
        self.cycle = self._running = None  # type: ignore[assignment]  # uvicorn's type leaves out what it begins with

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._held:
            self._held = False
            self._after_answer()

    # Called by the parser.

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        if not self._bare_bytes:
            # It begins behind another, in what came together; how much of that it is, nobody tells.
            self._bare_bytes = 1

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too, and are dropped: who reads headers has read them.
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        # One that asks for an upgrade is read again without it.
        if self._deaf or self.parser.should_upgrade():
            return
        # Of one that came behind another, in the same piece, the bytes have not been counted.
        uncounted = self.answering or self._bare_bytes > head.LIMIT_BYTES
        if fault := head.fault(self.url, self.headers, self.parser.get_http_version(), may_be_long=uncounted):
            self.refuse(fault)
            return
        self._bare_bytes = 0
        self.open_cycle()
        if len(self.pipeline) > AHEAD_LIMIT_REQUESTS:
            self._give_up_ahead()
        self._in_head = self._deaf

    def open_cycle(self) -> None:
        """The head of a request is complete: start serving it, or queue it behind the one that is served."""
        if not head.has_path(self.url):
            self.send_400_response("")
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        # Only now uvicorn's own preparations, which cost more than the rest of the parsing.
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        cycle: Any = self.cycle
        cycle.transport = CycleWire(self)
        # uvicorn stops reading when it queues.
        self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        if self._deaf:
            return
        self.take(body)
        if self.cycle is not self._running:
            # Its body is for later, and a client that leaves is to be seen now.
            self.flow.resume_reading()

    def take(self, body: bytes) -> None:
        """A piece of the body of the request that is being read."""
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return
        self._in_head = True
        self._bare_bytes = 0
        if self._deaf:
            return
        if not self.parser.should_keep_alive():
            # Trailers can say so as well, and the parser reads nothing after them.
            self.cycle.keep_alive = False
        self.complete()

    def complete(self) -> None:
        """The request that is being read has been read."""
        super().on_message_complete()

    # Called by uvicorn.

    def _start_asgi_task(self, cycle: Any, app: ASGI3Application) -> None:  # noqa: ANN401  (the fast lane has its own)
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer has been written: go on with the next request when the client has taken it."""
        self.server_state.total_requests += 1
        self._held = self.flow.write_paused and not self.transport.is_closing()
        if not self._held:
            self._after_answer()

    def cut(self, wire: CycleWire) -> None:
        """The cycle with this wire has failed: close, if its answer is the one that is under way."""
        if getattr(self._running, "transport", None) is wire and not self._running.response_complete:
            self.transport.close()

    def shutdown(self) -> None:
        """Close when the answer that is under way is complete; at once where there is none."""
        if self.answering:
            self._running.keep_alive = False
        else:
            self._close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's words, where OpenAI's shape is due)
        self.refuse(not_http())

    def depart(self, cycle: Any) -> None:  # noqa: ANN401  (the fast lane has its own)
        """Tell a cycle that its client has left."""
        if not cycle.response_complete:
            cycle.disconnected = True
        cycle.message_event.set()

    def spoil(self, cycle: Any, error: CorralError) -> None:  # noqa: ANN401  (the fast lane has its own)
        """Tell a cycle that the rest of its request will not come, and its client why."""
        started = cycle.response_started
        self.depart(cycle)
        cycle.response_complete = True
        if not started:
            self.transport.write(refusal(error))
        self._linger()

    @property
    def answering(self) -> bool:
        """An answer is under way."""
        return self._running is not None and (self._held or not self._running.response_complete)

    @property
    def _early(self) -> bool:
        """What comes now is for later."""
        return self.answering and (self._in_head or self.cycle is not self._running)

    @property
    def _half_read(self) -> bool:
        """The request that is, or was, answered has not come to its end."""
        return self.cycle is self._running and not self._in_head

    @property
    def _unread(self) -> bool:
        """The last answer is complete, and has not left yet."""
        return self._deaf and not self.answering and self.transport.get_write_buffer_size() > 0

    def _feed(self, data: bytes) -> None:
        if self._in_head and not self._bare_bytes:
            self._alarm.set(self.settings.head_timeout_s)
        self._bare_bytes += len(data)
        self._parse(data)
        if self._bare_bytes > head.LIMIT_BYTES and not self._deaf:
            self.refuse(head_too_large(head.LIMIT_BYTES))

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._deaf:
                    return
                if self.parser.get_method() != b"CONNECT":
                    # Nothing here is upgraded to. What follows is no other protocol, but the body.
                    data = head.without_upgrade(self.parser, self.url, self.headers) + data[upgrade.args[0] :]
                    continue
                self.refuse(not_http())
            except httptools.HttpParserCallbackError:
                log.exception("a callback of the HTTP parser failed")
                self.transport.abort()
            except httptools.HttpParserError:
                self.refuse(not_http())
            return

    def _keep(self, data: bytes) -> None:
        """Keep what was sent ahead, as long as it is little."""
        self._ahead += data
        if len(self._ahead) > AHEAD_LIMIT_BYTES:
            self._give_up_ahead()

    def _give_up_ahead(self) -> None:
        self._ahead.clear()
        self._end_with_this_answer()

    def _end_with_this_answer(self) -> None:
        """Nothing more is read, and nothing is served but what is."""
        self._deaf = True
        self.pipeline.clear()
        if self.answering:
            self._running.keep_alive = False

    def _after_answer(self) -> None:
        """Go on with the next request, if there is to be one; it may be here already, in part or whole."""
        if self.transport.is_closing():
            self._await_reader()
        elif self._deaf or self._half_read:
            self._linger()
        elif not self._running.keep_alive:
            self._linger() if self._ahead or self.pipeline else self._close()
        else:
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._alarm.set(self.settings.head_timeout_s if self._bare_bytes else self.settings.keep_alive_s)
            if self._ahead and not self._early:
                data = bytes(self._ahead)
                self._ahead.clear()
                self._feed(data)

    def refuse(self, error: CorralError) -> None:
        """Answer and close; where another answer is under way, only close after that."""
        if self._deaf:
            return
        self._end_with_this_answer()
        if not self.answering:
            self.transport.write(refusal(error))
            self._linger()
        elif self._half_read:
            self.spoil(self._running, error)

    def _linger(self) -> None:
        """Say that nothing more will come, and read on for a while without listening."""
        self._deaf = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._reader.begin()
            self._alarm.set(LINGER_S)
        else:
            self._close()

    def _close(self) -> None:
        self.transport.close()
        self._await_reader()

    def _ring(self) -> None:
        """The client took too long: to read, to stop, or to send a head."""
        if self.flow.write_paused or self.transport.is_closing() or self._unread:
            if self._reader.stalled():
                self.transport.abort()
            else:
                self._alarm.set(self._reader.pause_s)
        elif self.answering:
            return
        elif self._deaf:
            self.transport.abort()
        elif self._bare_bytes:
            limit_s = self.settings.head_timeout_s
            self.refuse(HeadTimeout(f"the request's head did not arrive within {limit_s:g} s"))
        else:
            self._close()

    def _await_reader(self) -> None:
        """From now on the client is to take what it was sent."""
        self._reader.begin()
        self._alarm.set(self._reader.pause_s)

    def _leave(self) -> None:
        """The client has left: nobody waits for what was asked on this connection."""
        self._deaf = True
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (*waiting, self._running, self.cycle):
            if cycle is not None:
                self.depart(cycle)
