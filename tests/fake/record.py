"""What the fake remembers of each request; ``GET /fake/requests`` tells it."""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from fake.connection import Connection, Request


@dataclass
class Record:
    """Written by the exchange it is of. Times are seconds of this machine's monotonic clock."""

    connection: int
    nth: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    # Parsed if it is JSON, else as text.
    body: object
    received_at: float
    status: int = 0
    # running | complete | client_gone | fault (the reply was spoilt or withheld on purpose)
    ended: str = "running"
    ended_at: float | None = None
    # When the client was seen to leave, however far the request was.
    left_at: float | None = None
    # When its connection was closed, by whichever side; ``None`` while it is open.
    closed_at: float | None = None
    # Kinds of the faults that struck, and ids of the tasks that were made.
    faults: list[str] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    # Writes to the socket.
    writes: int = 0

    def told(self, connection: Connection | None) -> dict[str, Any]:
        """As JSON; a client may have left a request that still runs."""
        if connection is not None:
            self.closed_at = connection.closed_at
            if self.ended == "running":
                self.left_at = connection.left_at
        return asdict(self)


def record_of(connection: Connection, request: Request) -> Record:
    return Record(
        connection=connection.number,
        nth=request.nth,
        method=request.method,
        path=request.path,
        query=request.query,
        headers=request.headers,
        body=read_body(request.body),
        received_at=time.monotonic(),
    )


def read_body(body: bytes) -> object:
    try:
        parsed: object = json.loads(body)
        return parsed
    except ValueError:
        return body.decode("utf-8", "replace")
