"""The fast lane: inference requests go from the connection straight to the exchange, without ASGI."""

import asyncio
import logging
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.server import ServerState

from corral.config import ServerSettings
from corral.core.call import Endpoint
from corral.core.errors import CorralError, TooManyConnections
from corral.pipeline.answer import ClientGone
from corral.pipeline.exchange import Exchange
from corral.web.probes import Readiness
from corral.web.protocol import Protocol
from corral.web.wire_answer import WireAnswer, WireInbound

log = logging.getLogger("corral")

# Exactly these bytes; a path written in any other way is the app's to read.
HOT_PATHS = {endpoint.path.encode(): endpoint for endpoint in Endpoint}


# A connection that is one too many stays open until its client has read why, for some seconds; above
# this multiple of the limit there is no time for that.
CROWD = 1.25


def fast_lane(
    exchange: Exchange, server: ServerSettings, readiness: Readiness, connections: int
) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn; so many connections are served at a time."""

    class Lane(FastLane):
        pass

    Lane.exchange = exchange
    Lane.settings = server
    Lane.readiness = readiness
    Lane.most_connections = connections
    Lane.default_headers = DefaultHeaders()
    return Lane


class FastLane(Protocol):
    """A connection whose inference requests skip the app. Writers: its transport's and its parser's callbacks.

    It is never a second behaviour: what needs more than the exchange does, a
    page of another origin for one, falls through to the app.
    """

    exchange: Exchange
    readiness: Readiness
    default_headers: "DefaultHeaders"
    most_connections: int

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  (asyncio's base class is wider than what comes)
        super().connection_made(transport)
        excess = len(self.connections) - self.most_connections
        if excess > 0:
            self._turn_away(excess)

    def open_cycle(self) -> None:
        endpoint = HOT_PATHS.get(self.url)
        if endpoint is None or self.parser.get_method() != b"POST" or self._needs_cors():
            super().open_cycle()
            return
        waits = self.answering
        self.cycle = cycle = Cycle(self, endpoint)  # type: ignore[assignment]  # uvicorn's cycle, as far as it uses it
        if waits:
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]
        else:
            self._start_asgi_task(cycle, self.app)

    def take(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if not isinstance(cycle, Cycle):
            super().take(body)
        elif not cycle.response_complete:
            cycle.inbound.feed(body)

    def complete(self) -> None:
        cycle: Any = self.cycle
        if isinstance(cycle, Cycle):
            cycle.inbound.end()
        else:
            super().complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if isinstance(self._running, Cycle):
            self._running.answer.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if isinstance(self._running, Cycle):
            self._running.answer.resume()

    def depart(self, cycle: Any) -> None:  # noqa: ANN401  (one of two kinds)
        if isinstance(cycle, Cycle):
            cycle.leave()
        else:
            super().depart(cycle)

    def spoil(self, cycle: Any, error: CorralError) -> None:  # noqa: ANN401  (one of two kinds)
        if isinstance(cycle, Cycle):
            cycle.inbound.fail(error)
        else:
            super().spoil(cycle, error)

    def _turn_away(self, excess: int) -> None:
        """Keep the files for those who are served: each of their requests may take one more, to a llama-server."""
        if excess == 1:
            log.warning("too many connections", extra={"fields": {"served": self.most_connections}})
        if len(self.connections) > self.most_connections * CROWD + 1:
            self.transport.abort()
        else:
            self.refuse(TooManyConnections("too many connections are open; come back in a moment", retry_after_s=1.0))

    def _needs_cors(self) -> bool:
        return bool(self.settings.cors_origins) and any(name == b"origin" for name, _ in self.headers)


class Cycle:
    """One request and its answer; in the place, and with the names, of uvicorn's ``RequestResponseCycle``.

    Writers: the connection, and the task that runs it.
    """

    __slots__ = (
        "_endpoint",
        "_protocol",
        "_task",
        "answer",
        "disconnected",
        "inbound",
        "keep_alive",
        "message_event",
        "response_complete",
    )

    def __init__(self, protocol: FastLane, endpoint: Endpoint) -> None:
        parser = protocol.parser
        modern = parser.get_http_version() != "1.0"
        # Until the request has been read to its end: that may end the connection too.
        self.keep_alive = modern and not protocol.readiness.stopping
        self.response_complete = False
        # uvicorn sets these when the connection is lost; ``leave`` has done more by then.
        self.disconnected = False
        self.message_event = _Unheard
        self.inbound = WireInbound(
            protocol.headers, protocol.transport, protocol.flow, expects=modern and protocol.expect_100_continue
        )
        self.answer = WireAnswer(
            protocol.transport,
            protocol.default_headers.lines(protocol.server_state),
            chunked=modern,
            keep_alive=self._kept,
            leaving=self._cancel,
        )
        self._protocol = protocol
        self._endpoint = endpoint
        self._task: asyncio.Task[Any] | None = None

    async def run_asgi(self, _: ASGI3Application) -> None:
        """Serve it; uvicorn's name for it, as uvicorn starts what is queued."""
        self._task = asyncio.current_task()
        answer = self.answer
        try:
            await self._protocol.exchange.serve(self._endpoint, self.inbound, answer)
        finally:
            self._task = None
            self.response_complete = True
            if not (answer.ended or answer.gone):
                self._protocol.transport.abort()
            self._protocol.on_response_complete()

    def leave(self) -> None:
        """The client has left."""
        self.inbound.fail(ClientGone())
        self.answer.leave()

    def _cancel(self) -> None:
        # A task that has not begun finds out by itself, and leaves a record.
        if self._task is not None:
            self._task.cancel()

    def _kept(self) -> bool:
        """The connection goes on after this answer, which is about to start."""
        self.keep_alive = self.keep_alive and self.inbound.complete
        return self.keep_alive


class DefaultHeaders:
    """uvicorn's headers for every answer as lines; it makes them anew once a second. One writer: ``lines``."""

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def lines(self, state: ServerState) -> bytes:
        if state.default_headers is not self._headers:
            self._headers = state.default_headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in self._headers)
        return self._lines


class _Unheard:
    """An event that nobody waits for."""

    @staticmethod
    def set() -> None:
        pass
