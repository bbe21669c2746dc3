"""What the fast lane relies on in uvicorn: each of these fails when uvicorn changes it."""

import asyncio
import inspect
from collections import deque
from typing import Any

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

from corral.web.fastlane import Cycle, FastLane
from corral.web.protocol import Protocol
from support.run import async_test

# The methods that the lane has in the place of uvicorn's, or calls, and the names of their parameters.
METHODS = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "data_received": ["data"],
    "eof_received": [],
    "pause_writing": [],
    "resume_writing": [],
    "on_message_begin": [],
    "on_url": ["url"],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
    "_start_asgi_task": ["cycle", "app"],
    "shutdown": [],
    "send_400_response": ["msg"],
}
# All that uvicorn's protocol does: a new method may be one that the lane has to have in its own way.
OTHERS = {
    "__init__",
    "_get_upgrade",
    "_should_upgrade",
    "_should_upgrade_to_ws",
    "_unset_keepalive_if_required",
    "_unsupported_upgrade_warning",
    "handle_websocket_upgrade",
    "timeout_keep_alive_handler",
}
STATE = {"app", "config", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop", "parser"}
STATE |= {"pipeline", "server_state", "tasks", "transport", "url"}
# What uvicorn's own cycle has that the connection reads or sets, and of its transport.
CYCLE = {"disconnected", "keep_alive", "message_event", "response_complete", "response_started", "transport"}
CYCLE_WIRE = {"close", "is_closing", "write"}


class Transport(asyncio.Transport):
    """A connection of which nothing is sent anywhere. Written by the protocol under test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closing = False
        self.paused = False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def connected() -> tuple[HttpToolsProtocol, Transport]:
    """uvicorn's own protocol with a connection; to be called within a running loop."""
    protocol = HttpToolsProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})
    transport = Transport()
    protocol.connection_made(transport)
    return protocol, transport


def source_of(of: object) -> str:
    return inspect.getsource(of)  # type: ignore[arg-type]  # functions and classes


def test_the_version_is_the_one_that_was_read() -> None:
    assert uvicorn.__version__.rpartition(".")[0] == "0.54"


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_what_they_took(name: str) -> None:
    parameters = list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters)
    assert parameters == ["self", *METHODS[name]]


def test_there_are_no_new_methods() -> None:
    assert {name for name, each in vars(HttpToolsProtocol).items() if inspect.isfunction(each)} == OTHERS | set(METHODS)


def test_what_the_lane_overrides_is_there() -> None:
    own = {name for lane in (Protocol, FastLane) for name in vars(lane) if hasattr(HttpToolsProtocol, name)}
    functions = {name for name in own if inspect.isfunction(getattr(HttpToolsProtocol, name))}
    assert functions - {"__init__"} <= set(METHODS)


@async_test
async def test_state_is_named_as_it_was() -> None:
    protocol, _ = connected()
    protocol.on_message_begin()
    assert set(vars(protocol)) >= STATE
    assert isinstance(protocol.pipeline, deque)
    assert isinstance(protocol.flow, FlowControl)
    assert vars(protocol)["cycle"] is None
    assert (protocol.url, protocol.headers) == (b"", [])


@async_test
async def test_the_parser_reads_on_after_a_request_that_ends_the_connection() -> None:
    """Else what is sent behind it would be an error, and end its answer."""
    protocol, _ = connected()
    last = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    protocol.parser.feed_data(last + last)


@async_test
async def test_what_is_queued_are_a_cycle_and_an_app_and_the_oldest_is_on_the_right() -> None:
    protocol, transport = connected()
    protocol.data_received(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n")
    (third, same_app), (second, _) = protocol.pipeline
    assert (second.scope["path"], third.scope["path"]) == ("/2", "/3")
    assert same_app is protocol.app
    # This is what hides a client that leaves; the lane reads on.
    assert transport.paused
    await asyncio.gather(*protocol.tasks)


@async_test
async def test_a_cycle_has_what_the_connection_reads_and_sets() -> None:
    protocol, _ = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\n\r\n")
    cycle = protocol.cycle
    assert set(vars(cycle)) >= CYCLE
    assert isinstance(cycle.message_event, asyncio.Event)
    assert callable(cycle.run_asgi)
    assert protocol.tasks
    await asyncio.gather(*protocol.tasks)
    assert cycle.response_complete
    assert protocol.server_state.total_requests == 1
    protocol.connection_lost(None)


def test_a_cycle_of_ours_has_what_uvicorn_reads_and_sets() -> None:
    """In ``connection_lost`` and ``on_headers_complete`` uvicorn knows nothing of its kind."""
    used = {"disconnected", "message_event", "response_complete"}
    assert used <= set(Cycle.__slots__)
    source = source_of(HttpToolsProtocol.connection_lost) + source_of(HttpToolsProtocol.on_headers_complete)
    assert {word for word in CYCLE | {"body", "more_body", "scope"} if f"cycle.{word}" in source} == used


def test_a_cycle_uses_no_more_of_its_transport_than_it_is_given() -> None:
    source = source_of(RequestResponseCycle)
    methods = {name for name in dir(asyncio.Transport) if not name.startswith("_")}
    assert {name for name in methods if f"self.transport.{name}" in source} == CYCLE_WIRE


@async_test
async def test_a_cycle_closes_before_it_tells_that_the_answer_is_complete() -> None:
    """After a complete answer the lane leaves the closing to ``on_response_complete``."""
    protocol, transport = connected()
    told: list[tuple[bool, bool]] = []
    protocol.data_received(b"GET / HTTP/1.0\r\n\r\n")
    cycle = protocol.cycle
    cycle.on_response = lambda: told.append((cycle.response_complete, transport.closing))
    await asyncio.gather(*protocol.tasks)
    assert told == [(True, True)]
    assert b"connection: close\r\n" in transport.sent


@async_test
async def test_a_cycle_whose_client_has_left_sends_nothing() -> None:
    protocol, transport = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\n\r\n")
    protocol.cycle.disconnected = True
    await asyncio.gather(*protocol.tasks)
    assert transport.sent == b""


@async_test
async def test_a_body_that_nobody_reads_pauses_the_connection() -> None:
    """The lane has to resume it where the request is not served yet."""
    protocol, transport = connected()
    protocol.data_received(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000)
    assert transport.paused
    protocol.flow.resume_reading()
    assert not transport.paused
    await asyncio.gather(*protocol.tasks)


@async_test
async def test_what_flow_control_tells() -> None:
    protocol, _ = connected()
    assert not protocol.flow.write_paused
    protocol.pause_writing()
    assert protocol.flow.write_paused
    protocol.connection_lost(None)
    assert not protocol.flow.write_paused


@async_test
async def test_a_connection_that_is_lost_leaves_the_connections() -> None:
    protocol, transport = connected()
    assert protocol.connections == {protocol}
    assert protocol.connections is protocol.server_state.connections
    protocol.connection_lost(ConnectionResetError())
    assert protocol.connections == set()
    # Nothing is parsed after that.
    assert vars(protocol)["parser"] is None
    assert not transport.closing


def test_status_lines_are_complete() -> None:
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
    assert STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    assert all(status in STATUS_LINE for status in range(100, 600))


@async_test
async def test_headers_of_every_answer_are_a_new_list_once_a_second() -> None:
    server = Server(uvicorn.Config(app, log_config=None, server_header=False))
    assert not await server.on_tick(0)
    first = server.server_state.default_headers
    assert [name for name, _ in first] == [b"date"]
    assert not await server.on_tick(5)
    assert server.server_state.default_headers is first
    assert not await server.on_tick(10)
    assert server.server_state.default_headers is not first


class Connection:
    """What a server knows of a connection. Written by the server under test."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def shutdown(self) -> None:
        self.asked.set()


@async_test
async def test_a_server_that_stops_asks_its_connections_to_and_waits_for_them_and_their_tasks() -> None:
    server = Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=30, lifespan="off"))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.servers = []
    state = server.server_state
    connection: Any = Connection()
    serving = asyncio.create_task(asyncio.sleep(3600))
    state.connections.add(connection)
    state.tasks.add(serving)
    stopping = asyncio.create_task(server.shutdown())
    await asyncio.wait_for(connection.asked.wait(), 10)
    state.connections.clear()
    done, _ = await asyncio.wait([stopping], timeout=0.5)
    assert not done
    serving.cancel()
    state.tasks.clear()
    await asyncio.wait_for(stopping, 10)


@async_test
async def test_after_the_grace_a_server_cancels_the_tasks() -> None:
    server = Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=0, lifespan="off"))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.servers = []
    serving = asyncio.create_task(asyncio.sleep(3600))
    server.server_state.tasks.add(serving)
    await asyncio.wait_for(server.shutdown(), 10)
    await asyncio.wait([serving], timeout=10)
    assert serving.cancelled()


# -- httptools -------------------------------------------------------------------


class Heard:
    """What a parser calls. Written by it."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_headers_complete(self) -> None:
        self.calls.append(self.parser.should_upgrade())

    def on_body(self, body: bytes) -> None:
        self.calls.append(body)

    def on_message_complete(self) -> None:
        self.calls.append("complete")


def test_a_parser_leaves_out_the_body_of_an_upgrade_and_goes_on_behind_the_head() -> None:
    """Which is why the lane feeds such a head again, without the upgrade."""
    heard = Heard()
    head = b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        heard.parser.feed_data(head + b"hello")
    assert upgrade.value.args[0] == len(head)
    assert heard.calls == [True, "complete"]
    heard.parser.feed_data(head.replace(b"Upgrade: x\r\n", b"") + b"hello")
    assert heard.calls[2:] == [False, b"hello", "complete"]


def test_an_invalid_url_is_an_error_of_the_parser() -> None:
    assert issubclass(httptools.HttpParserInvalidURLError, httptools.HttpParserError)
    assert issubclass(httptools.HttpParserCallbackError, httptools.HttpParserError)
    # Else the order of the ``except`` clauses would matter.
    assert not issubclass(httptools.HttpParserUpgrade, httptools.HttpParserCallbackError)
    assert httptools.parse_url(b"http://x").path is None


def test_the_module_is_the_one_that_is_overridden() -> None:
    assert httptools_impl.HttpToolsProtocol is HttpToolsProtocol
    assert Protocol.__mro__[1] is HttpToolsProtocol
