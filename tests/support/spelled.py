"""Requests spelled byte by byte, and all the answers that come back on one connection."""

import json
import socket
from dataclasses import dataclass
from typing import Any

from support.raw_client import PATIENCE_S, RawClient, Reply
from support.talk import CHAT, chat, checked_error

HOST = "Host: x"
AUTHORIZED = "Authorization: Bearer local"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
POST = f"POST {CHAT} HTTP/1.1"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = json.dumps(chat(max_tokens=8)).encode()
# What its answer says of the type, by which it is told from others in a row.
TYPES = {False: "application/json", True: "text/event-stream; charset=utf-8"}


@dataclass(frozen=True)
class Answer:
    """One of the answers on a connection. ``whole``: it came to its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def code(self) -> Any:
        """The code of the error, in OpenAI's shape, that it is; None when it is none."""
        return checked_error(json.loads(self.body))["code"] if self.status >= 400 else None

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class NarrowClient(RawClient):
    """A client whose kernel takes next to nothing that it has not read. The window has to be small from the start."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))


def spelled(*lines: str | bytes, body: bytes = b"", ends: bytes = b"\r\n") -> bytes:
    """The lines of a head, and what follows it."""
    encoded = (line if isinstance(line, bytes) else line.encode("latin-1") for line in lines)
    return b"".join(line + ends for line in encoded) + ends + body


def posted(*headers: str | bytes, body: bytes = SHORT, line: str | bytes = POST) -> bytes:
    """A sound request for a chat, with these headers besides."""
    return spelled(line, HOST, AUTHORIZED, JSON, f"Content-Length: {len(body)}", *headers, body=body)


def asked(content: str, *headers: str, **fields: Any) -> bytes:
    """A sound request for a chat that says this."""
    return posted(*headers, body=json.dumps(chat(content, **fields)).encode())


def in_chunks(body: bytes, size: int = 1 << 20, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    """A body in the chunked coding."""
    parts = (body[start : start + size] for start in range(0, len(body), size))
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    return chunks + b"0\r\n" + trailers + b"\r\n"


def exchanged(port: int, data: bytes, *, until: bytes | None = None) -> list[Answer]:
    """What a client gets that sends this and reads to the end of the connection, which must not be a reset."""
    with RawClient(port) as client:
        client.socket.sendall(data)
        return ended(client, until=until)


def ended(client: RawClient, *, until: bytes | None = None) -> list[Answer]:
    """What comes until the connection ends in good order."""
    reply = client.receive(until=until)
    assert until is not None or reply.end == "fin", reply
    return answers_of(reply)


def answers_of(reply: Reply) -> list[Answer]:
    """The answers in what came, without 100 Continue."""
    answers = []
    data = reply.raw
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        assert first.startswith("HTTP/1.1 "), first
        if status == 100:
            continue
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body, data, whole = _body(headers, data, reply.end)
        answers.append(Answer(status, headers, body, whole))
    return answers


def _body(headers: dict[str, str], data: bytes, end: str) -> tuple[bytes, bytes, bool]:
    """The body at the beginning of the data, what is left of them, and whether the body is all there."""
    if headers.get("transfer-encoding") == "chunked":
        return _unchunked(data)
    if "content-length" not in headers:
        return data, b"", end == "fin"
    size = int(headers["content-length"])
    return data[:size], data[size:], len(data) >= size


def _unchunked(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while True:
        line, found, rest = data.partition(b"\r\n")
        size = int(line, 16) if found else 0
        if not found or len(rest) < size + 2:
            return body, b"", False
        assert rest[size : size + 2] == b"\r\n"
        if not size:
            return body, rest[2:], True
        body, data = body + rest[:size], rest[size + 2 :]
