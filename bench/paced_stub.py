"""A llama-server for measurements of streams: each token leaves on time and says when that was.

    python bench/paced_stub.py --slots 4096 --pace-ms 400

Prints ``{"port": …}`` and serves until its standard input ends. A chat with
``stream`` gets ``max_tokens`` tokens (one without a single one, at once), one every ``--pace-ms``; the text of each
is its number and its moment, in nanoseconds of the machine's monotonic clock:
``7:8123456789``. It counts in ``/slots`` who is served, as llama-server does, and
tells in ``/served`` how many that are, were at most, and for how long in sum.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import cast

import uvloop

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
TOKENS = re.compile(rb'"max_tokens": *(\d+)')
STREAM = re.compile(rb'"stream": *true')
BACKLOG = 4096

NAMES = (
    b'"created":1760000000,"id":"chatcmpl-0123456789abcdef0123456789abcdef","model":"paced","system_fingerprint":"b0"'
)
CHUNK = NAMES + b',"object":"chat.completion.chunk"}\n\n'
HEAD = (
    b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\n"
    b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
ROLE = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],' + CHUNK
TOKEN = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"%d:%d"}}],' + CHUNK
WHOLE = {
    "choices": [{"finish_reason": "length", "index": 0, "message": {"role": "assistant", "content": "0"}}],
    "created": 1760000000,
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "model": "paced",
    "object": "chat.completion",
    "usage": {"completion_tokens": 1, "prompt_tokens": 8, "total_tokens": 9},
}
FINISH = b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],' + CHUNK
PROGRESS = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],'
    b'"prompt_progress":{"total":8,"cache":0,"processed":8,"time_ms":1},' + CHUNK
)
USAGE = (
    b'data: {"choices":[],"usage":{"completion_tokens":%d,"prompt_tokens":8,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":0}},' + CHUNK
)


class Stub:
    """All connections, and who of them is served. One writer: the connections."""

    def __init__(self, slots: int, pace_s: float) -> None:
        self.pace_s = pace_s
        self.tasks = count()
        # Who is served, and the task that it is.
        self.served: dict[Connection, int] = {}
        self._slots = slots
        self._most = 0
        self._served_s = 0.0
        self._looked_s = time.monotonic()

    def begin(self, connection: "Connection") -> None:
        self._look()
        self.served[connection] = next(self.tasks)
        self._most = max(self._most, len(self.served))

    def end(self, connection: "Connection") -> None:
        """It has got all, or has left; more than once is once."""
        self._look()
        self.served.pop(connection, None)

    def _look(self) -> None:
        now_s = time.monotonic()
        self._served_s += len(self.served) * (now_s - self._looked_s)
        self._looked_s = now_s

    def answer(self, path: bytes) -> bytes:
        """The whole answer of a route that is not inference."""
        if path == b"/props":
            return whole({"total_slots": self._slots, "endpoint_slots": True, "chat_template_caps": {}})
        if path == b"/slots":
            busy = enumerate(self.served.values())
            return whole([{"id": number, "id_task": task, "is_processing": True} for number, task in busy])
        if path == b"/served":
            self._look()
            return whole({"now": len(self.served), "most": self._most, "served_s": self._served_s})
        return whole({"status": "ok"})


class Connection(asyncio.Protocol):
    """One connection: requests one after another until a stream ends it. Written by its own callbacks."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (request := read_request(self._received)) is None:
            return
        self._received = b""
        path, body = request
        if path == b"/v1/chat/completions" and STREAM.search(body):
            self._stream(body)
        elif path == b"/v1/chat/completions":
            self._transport.write(ANSWER)
        else:
            self._transport.write(self._stub.answer(path))

    def connection_lost(self, _: Exception | None) -> None:
        self._stub.end(self)
        if self._timer is not None:
            self._timer.cancel()

    def _stream(self, body: bytes) -> None:
        tokens = TOKENS.search(body)
        self._left = int(tokens[1]) if tokens else 1
        self._number = 0
        self._stub.begin(self)
        progress = chunk(PROGRESS) if b'"return_progress":true' in body else b""
        self._transport.write(HEAD + progress)
        self._due = asyncio.get_running_loop().time()
        self._wait()

    def _wait(self) -> None:
        # From the last due time on, not from now, else a late token makes all that follow late.
        self._due += self._stub.pace_s
        self._timer = asyncio.get_running_loop().call_at(self._due, self._say)

    def _say(self) -> None:
        events = (ROLE if self._number == 0 else b"") + TOKEN % (self._number, time.monotonic_ns())
        self._transport.write(chunk(events))
        self._number += 1
        self._left -= 1
        if self._left:
            self._wait()
            return
        # Before the last byte is out: whoever has that may send another one at once.
        self._stub.end(self)
        usage = USAGE % (self._number, self._number + 8)
        self._transport.write(chunk(FINISH + usage) + chunk(DONE) + LAST_CHUNK)
        self._transport.close()


def read_request(received: bytes) -> tuple[bytes, bytes] | None:
    """Path and body, once all has come; Corral does not send a second request before the reply to the first."""
    head, end, rest = received.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    if not end or len(rest) < (int(length[1]) if length else 0):
        return None
    return head.split(b" ", 2)[1], rest


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(value: object) -> bytes:
    """A whole answer of JSON."""
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


ANSWER = whole(WHOLE)


async def serve(make: Callable[[], asyncio.Protocol]) -> None:
    """Serve on a free port of loopback, and say which, until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0, backlog=BACKLOG)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    stop = asyncio.Event()
    loop.add_reader(sys.stdin, lambda: None if os.read(0, 4096) else stop.set())
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=4096)
    parser.add_argument("--pace-ms", type=float, default=400.0)
    options = parser.parse_args()
    stub = Stub(options.slots, options.pace_ms / 1000)
    uvloop.run(serve(partial(Connection, stub)))


if __name__ == "__main__":
    main()
