"""A client on the bare socket: it sees every byte, and how the connection ends."""

import json
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

# Longer than any pause in the tests; a reply that takes longer hangs.
PATIENCE_S = 10.0


@dataclass
class Reply:
    """What came: ``parts`` as the socket gave it; ``end`` is fin, rst, or silence."""

    parts: list[bytes] = field(default_factory=list)
    end: str = ""

    @property
    def raw(self) -> bytes:
        return b"".join(self.parts)

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return dict(line.lower().split(": ", 1) for line in lines)

    @property
    def body(self) -> bytes:
        """Without the framing of a chunked body; what is missing of a broken one is missing here."""
        body = self.raw.partition(b"\r\n\r\n")[2]
        return b"".join(unchunk(body)) if self.headers.get("transfer-encoding") == "chunked" else body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """What follows ``data: ``; an event that is cut is not among them."""
        lines = self.body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
        return [line.removeprefix(b"data: ").decode() for line in lines if line.startswith(b"data: ")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events that are JSON objects."""
        return [json.loads(event) for event in self.events if event not in ("[DONE]", "null")]


class RawClient:
    """One connection, request after request."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> None:
        """Send a request; ``_`` in a header's name stands for ``-``."""
        sent = json.dumps(body).encode() if body is not None else b""
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n{named}\r\n"
        self.socket.sendall(head.encode() + sent)

    def receive(self, limit_s: float = PATIENCE_S, *, until: bytes | None = None) -> Reply:
        """What comes until the connection ends, ``until`` has come, or nothing comes for so long."""
        reply = Reply()
        self.socket.settimeout(limit_s)
        try:
            while until is None or until not in reply.raw:
                part = self.socket.recv(1 << 20)
                if not part:
                    reply.end = "fin"
                    break
                reply.parts.append(part)
        except ConnectionResetError:
            reply.end = "rst"
        except TimeoutError:
            reply.end = "silence"
        assert until is None or until in reply.raw, f"{until!r} did not come, but {reply}"
        return reply

    def whole(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """A reply with a Content-Length; the connection stays as it is."""
        self.send(method, path, body, **headers)
        reply = self.receive(until=b"\r\n\r\n")
        missing = int(reply.headers["content-length"]) - len(reply.body)
        while missing > 0:
            part = self.socket.recv(missing)
            assert part, f"{missing} bytes are missing"
            reply.parts.append(part)
            missing -= len(part)
        return reply

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def ask(port: int, path: str, body: object = None, **headers: str) -> Reply:
    """One request on a connection of its own, read until the connection ends; POST when there is a body."""
    with RawClient(port) as client:
        client.send("GET" if body is None else "POST", path, body, **{"Connection": "close"} | headers)
        return client.receive()


def unchunk(body: bytes) -> list[bytes]:
    """The chunks that came whole."""
    parts = []
    while (end := body.find(b"\r\n")) > 0:
        size = int(body[:end], 16)
        if not size or len(body) < end + 2 + size:
            break
        parts.append(body[end + 2 : end + 2 + size])
        body = body[end + 4 + size :]
    return parts
