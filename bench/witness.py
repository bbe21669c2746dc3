"""Clients that remember what they were told, and whether Corral's log tells the same of their exchanges.

seen = ask(corral.port, KEY, Request("chat 1", Kind.CHAT_STREAM, body))
complaints = contradictions([seen], corral.records())
"""

import http.client
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

HOST = "127.0.0.1"
# Longer than any limit that a measurement sets in Corral; what takes longer hangs.
LIMIT_S = 300.0
READ_BYTES = 64 * 1024
# So small that Corral's own buffer fills behind it.
SLOW_BUFFER_BYTES = 16 * 1024
# Corral learns of a client that leaves at once; this is for a machine that is busy with other things.
LEAVING_S = 2.0


class Kind(Enum):
    """What is asked for."""

    CHAT_STREAM = ("chat, streamed", "/v1/chat/completions")
    CHAT = ("chat", "/v1/chat/completions")
    COMPLETION_STREAM = ("completion, streamed", "/v1/completions")
    COMPLETION = ("completion", "/v1/completions")
    EMBEDDINGS = ("embeddings", "/v1/embeddings")

    def __init__(self, title: str, path: str) -> None:
        self.title = title
        self.path = path

    @property
    def streamed(self) -> bool:
        return self in (Kind.CHAT_STREAM, Kind.COMPLETION_STREAM)


class Ending(Enum):
    """How an answer ended, as its client saw it."""

    WHOLE = "complete"
    # An error status, or an error event in the stream.
    TOLD = "told of an error"
    LEFT = "client left"
    # None of these: what must not be.
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; its id stands in Corral's log. Generations are to be asked for with ``ignore_eos``."""

    id: str
    kind: Kind
    body: dict[str, Any]
    # The client leaves after so long, if it has no answer by then.
    leave_after_s: float | None = None
    # It waits for so long between two looks at what has come.
    pause_s: float = 0.0


@dataclass(slots=True)
class Seen:
    """What a client has seen of its answer. Written by ``ask``, in its thread."""

    request: Request
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)
    # All of it has come, as its framing says.
    framed: bool = False
    # When the client left, in seconds since 1970.
    left_at: float | None = None
    # What is wrong with an answer that is broken.
    fault: str = ""
    # Set when the first byte of an answer is there, or when there will be none.
    begun: threading.Event = field(default_factory=threading.Event)
    # It is over, so that the following is known.
    ended: bool = False
    ending: Ending = Ending.BROKEN
    # Of a complete answer, if it is one.
    text: str = ""
    # Of the error that the client was told.
    error_code: str | None = None


def ask(port: int, key: str, request: Request, seen: Seen | None = None) -> Seen:
    """Ask, and take in the answer in the manner of this client; what another thread may look at is ``seen``."""
    seen = seen or Seen(request)
    until = None if request.leave_after_s is None else time.monotonic() + request.leave_after_s
    connection = http.client.HTTPConnection(HOST, port)
    try:
        # Closing it is the client's farewell: the connection alone would leave that to its answer.
        with socket.socket() as wire:
            _connect(wire, port, request)
            connection.sock = wire
            try:
                _converse(connection, wire, key, seen, until)
            except TimeoutError:
                if until is not None:
                    seen.left_at = time.time()
                seen.fault = "nothing comes"
            finally:
                with suppress(OSError):
                    wire.shutdown(socket.SHUT_RDWR)
                connection.close()
    except (OSError, http.client.HTTPException) as error:
        seen.fault = repr(error)
    _judge(seen)
    # Nobody needs it any more, and there may be many.
    seen.content.clear()
    seen.ended = True
    seen.begun.set()
    return seen


def _connect(wire: socket.socket, port: int, request: Request) -> None:
    if request.pause_s:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
    wire.settimeout(LIMIT_S)
    wire.connect((HOST, port))


def _converse(
    connection: http.client.HTTPConnection, wire: socket.socket, key: str, seen: Seen, until: float | None
) -> None:
    request = seen.request
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "X-Request-Id": request.id,
    }
    connection.request("POST", request.kind.path, json.dumps(request.body), headers)
    _wait_until(wire, until)
    reply = connection.getresponse()
    seen.status, seen.headers = reply.status, dict(reply.headers.items())
    while piece := reply.read1(READ_BYTES):
        seen.content += piece
        seen.begun.set()
        time.sleep(request.pause_s)
        _wait_until(wire, until)
    seen.framed = not reply.length


def _wait_until(wire: socket.socket, until: float | None) -> None:
    """Let the next look at the answer take so long and no longer; raises TimeoutError when that is over."""
    if until is not None:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        wire.settimeout(left_s)


def _judge(seen: Seen) -> None:
    """Find out how it ended."""
    if seen.left_at is not None:
        seen.ending = Ending.LEFT
        return
    if not seen.framed:
        seen.fault = f"the answer breaks off: {seen.fault}"
        return
    try:
        if seen.status != 200:
            seen.ending, seen.error_code = Ending.TOLD, json.loads(seen.content)["error"]["code"]
        elif seen.request.kind.streamed:
            _judge_stream(seen)
        else:
            _judge_whole(seen)
    except (ValueError, LookupError, TypeError) as error:
        seen.fault = f"it has another shape ({error!r}): {bytes(seen.content[-200:])!r}"


def _judge_stream(seen: Seen) -> None:
    *events, last = [event for event in bytes(seen.content).split(b"\n\n") if event.startswith(b"data: ")]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    finishes = [choice for choice in choices if choice.get("finish_reason")]
    if any("error" in chunk for chunk in chunks):
        seen.fault = "an error event that is not the last"
    elif last != b"data: [DONE]":
        seen.error_code = json.loads(last.removeprefix(b"data: "))["error"]["code"]
        seen.ending = Ending.TOLD
    elif len(finishes) == 1:
        seen.ending = Ending.WHOLE
        seen.text = "".join(text_of(choice) for choice in choices)
    else:
        seen.fault = f"{len(finishes)} finish_reasons"


def _judge_whole(seen: Seen) -> None:
    reply = json.loads(seen.content)
    if seen.request.kind is Kind.EMBEDDINGS:
        whole = len(reply["data"]) == len(seen.request.body["input"])
    else:
        (choice,) = reply["choices"]
        whole, seen.text = bool(choice["finish_reason"]), text_of(choice)
    if whole:
        seen.ending = Ending.WHOLE
    else:
        seen.fault = "a reply that is not complete"


def text_of(choice: dict[str, Any]) -> str:
    """What a choice, or a piece of it, says."""
    return choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""


def contradictions(seen: Iterable[Seen], records: Iterable[dict[str, Any]]) -> list[str]:
    """Where the log does not tell what the clients saw, or a client saw what must not be; one line for each."""
    by_id: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_id[record["request_id"]].append(record)
    found = []
    for each in seen:
        of = by_id.pop(each.request.id, [])
        if wrong := _contradiction(each, of):
            found.append(f"{each.request.id} ({each.request.kind.title}): {wrong}; logged {json.dumps(of)}")
    return found + [f"{request_id}: nobody has asked; logged {json.dumps(of)}" for request_id, of in by_id.items()]


def _contradiction(seen: Seen, records: list[dict[str, Any]]) -> str:
    ending = seen.ending
    if len(records) != 1:
        return f"{len(records)} records of an exchange that ended as '{ending.value}'"
    (record,) = records
    if ending is Ending.BROKEN:
        return seen.fault
    if ending is Ending.LEFT:
        return _departed(seen, record)
    logged = (record["status"], record["outcome"], record["error_code"])
    if ending is Ending.WHOLE:
        return "" if logged == (200, "ok", None) else f"a complete answer is logged as {logged}"
    honest = (
        logged[0] == seen.status and logged[2] == seen.error_code and logged[1] not in ("ok", "client_gone", "aborted")
    )
    return "" if honest else f"an error of {seen.status} {seen.error_code} is logged as {logged}"


def _departed(seen: Seen, record: dict[str, Any]) -> str:
    """Who left is gone, unless the exchange was over by then: with an error, or with all that was asked for."""
    over_s = datetime.fromisoformat(record["ts"]).timestamp() - (seen.left_at or 0.0)
    if over_s > LEAVING_S:
        return f"the exchange of a client that left was over {over_s:.1f} s later"
    asked = seen.request.body.get("max_tokens", 0)
    if record["outcome"] == "ok" and not record["estimated"] and record["completion_tokens"] < asked:
        return f"a client left before all {asked} tokens had come"
    return "an exchange without an outcome" if record["outcome"] == "aborted" else ""
