"""Chats over HTTP for measurements: one streamed request, when its first token came, and what it took."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

HOST = "127.0.0.1"
# No request of a measurement takes as long.
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Told:
    """One answer. Times are of ``time.monotonic``."""

    asked_at: float
    first_at: float
    ended_at: float
    text: str
    replica: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.first_at - self.asked_at

    @property
    def service(self) -> float:
        """What it took, in tokens as Corral's queue counts them."""
        return self.prompt_tokens - self.cached_tokens + 2.0 * self.completion_tokens


class Broken(Exception):
    """A stream has ended before its end."""


class Line:
    """A client that asks one request after the other, and can be hung up. One writer: the thread that asks.

    ``hang_up`` may be called by another one: the request that runs is broken, and no other begins.
    """

    def __init__(self, port: int, key: str) -> None:
        self.over = False
        self._port = port
        self._key = key
        self._connection: http.client.HTTPConnection | None = None

    def stream(self, messages: list[dict[str, str]], **fields: object) -> Told:
        """Ask, and read the stream to its end; raises Broken when it has none."""
        self._connection = http.client.HTTPConnection(HOST, self._port, timeout=LIMIT_S)
        with closing(self._connection):
            try:
                return _stream(self._connection, self._key, messages, fields)
            except (OSError, http.client.HTTPException) as error:
                raise Broken(str(error)) from error

    def hang_up(self) -> None:
        self.over = True
        if self._connection is not None and self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)


def _stream(
    connection: http.client.HTTPConnection, key: str, messages: list[dict[str, str]], fields: dict[str, object]
) -> Told:
    body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **fields}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    asked_at = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    if reply.status != 200:
        raise Broken(f"status {reply.status}: {reply.read(500)!r}")
    return _read(reply, asked_at)


def _read(reply: http.client.HTTPResponse, asked_at: float) -> Told:
    first_at, text = 0.0, ""
    usage: dict[str, Any] = {}
    for chunk in _chunks(reply):
        for choice in chunk["choices"]:
            if piece := choice["delta"].get("content"):
                first_at = first_at or time.monotonic()
                text += piece
        usage = chunk.get("usage") or usage
    if not usage or not first_at:
        raise Broken("it broke off")
    return Told(
        asked_at=asked_at,
        first_at=first_at,
        ended_at=time.monotonic(),
        text=text,
        replica=reply.headers.get("x-corral-replica", ""),
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        completion_tokens=usage["completion_tokens"],
    )


def _chunks(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in reply:
        data = line.removeprefix(b"data: ").strip()
        if line.startswith(b"data: ") and data != b"[DONE]":
            yield json.loads(data)


def percentile(values: list[float], share: float) -> float:
    """The smallest of the values that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0
