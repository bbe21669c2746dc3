"""What a cycle of uvicorn's may do to the connection that it shares with those behind it."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from corral.config import ServerSettings
from corral.web.protocol import Protocol
from support.run import async_test

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection(Protocol):
    settings = ServerSettings()


class Transport(asyncio.Transport):
    """A connection of which nothing is sent anywhere. Written by the protocol under test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Tells the path; ``/late`` fails when it has done so, ``/early`` when it has told half of it."""
    body = scope["path"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    if body == b"/early":
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        raise LookupError
    await send({"type": "http.response.body", "body": body})
    if body == b"/late":
        raise LookupError


async def answered(*names: bytes) -> Transport:
    """A connection on which these were asked for in one go, once nobody answers any more."""
    protocol, transport = Connection(uvicorn.Config(app, log_config=None), ServerState(), {}), Transport()
    protocol.connection_made(transport)
    protocol.data_received(b"".join(GET % name for name in names))
    while protocol.tasks:
        await asyncio.wait(protocol.tasks)
    protocol.connection_lost(ConnectionResetError())
    return transport


@async_test
async def test_an_app_that_fails_behind_its_answer_does_not_cut_the_next() -> None:
    transport = await answered(b"late", b"next")
    assert transport.sent.endswith(b"/next")
    assert not transport.closing


@async_test
async def test_an_app_that_fails_within_its_answer_ends_the_connection() -> None:
    transport = await answered(b"early")
    assert transport.sent.endswith(b"/ea")
    assert transport.closing
