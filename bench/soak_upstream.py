"""A llama-server that does wrong what each prompt orders, as fast as Python lets it.

    python bench/soak_upstream.py --index 0 --slots 16

Prints ``{"port": …}`` and serves until its standard input ends. A prompt begins
with ``soak {…}``: the number of the request, how many tokens it gets, which
fault, at which token, and at which of the replicas. An answer that was begun elsewhere
is gone on with, and meets the fault where that one did. ``GET /soak`` tells how many
calls came and how many of them found no free slot, which must not happen.
"""

import argparse
import asyncio
import socket
import struct
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any, cast

import orjson
import uvloop

from paced_stub import HEAD, LAST_CHUNK, chunk, read_request, serve, whole
from soak_plan import HUGE_BYTES, MARK, MARK_END, token_of, vector_of

PACE_S = 0.002
# Shorter than Corral's limit on silence, which the soak sets to three seconds.
PAUSE_S = 0.4
TRICKLE_BYTES = 40

# What is written, a pause, or how the reply breaks off.
Step = bytes | float | str
RST, FIN, FOREVER = "rst", "fin", "forever"

SPLIT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/ev"
WRONG_TYPE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nhtml"
JSON_HEAD = b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
HTML_502 = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html"
DONE = b"data: [DONE]\n\n"


class Upstream:
    """The slots and who is in them. One writer: the connections."""

    def __init__(self, index: int, slots: int) -> None:
        self.index = index
        self._slots = slots
        self._free = list(range(slots))
        # Of each connection the (slot, task) pairs that it holds.
        self._served: dict[Connection, list[tuple[int, int]]] = {}
        self._tasks = count()
        self._calls = 0
        self._over = 0

    def take(self, connection: "Connection", tasks: int) -> None:
        """Put a call into so many slots; one that finds none goes beyond them, and is counted."""
        self._calls += 1
        self._over += tasks > len(self._free)
        slots = [self._free.pop() if self._free else self._slots for _ in range(tasks)]
        self._served[connection] = [(slot, next(self._tasks)) for slot in slots]

    def give_back(self, connection: "Connection") -> None:
        pairs = self._served.pop(connection, [])
        self._free += [slot for slot, _ in pairs if slot < self._slots]

    def answer(self, path: bytes) -> bytes:
        """The whole answer of a route that is not inference."""
        match path:
            case b"/props":
                return whole({"total_slots": self._slots, "endpoint_slots": True, "chat_template_caps": {}})
            case b"/slots":
                pairs = [pair for held in self._served.values() for pair in held]
                return whole([{"id": slot, "id_task": task, "is_processing": True} for slot, task in pairs])
            case b"/soak":
                return whole({"calls": self._calls, "over": self._over, "busy": len(self._served)})
            case _:
                return whole({"status": "ok"})


class Connection(asyncio.Protocol):
    """One connection and the steps of its reply. Written by its own callbacks."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._steps: Iterator[Step] = iter(())
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (request := read_request(self._received)) is None:
            return
        self._received = b""
        path, body = request
        if path.startswith(b"/v1/") and body:
            self._serve(path, orjson.loads(body))
        elif path == b"/tokenize":
            # Each of the plan's tokens begins with a blank.
            self._transport.write(whole({"tokens": orjson.loads(body)["content"].split()}))
        else:
            self._transport.write(self._upstream.answer(path))

    def connection_lost(self, _: Exception | None) -> None:
        self._upstream.give_back(self)
        if self._timer is not None:
            self._timer.cancel()

    def _serve(self, path: bytes, asked: dict[str, Any]) -> None:
        texts = texts_of(asked)
        orders = orders_of(texts[0])
        self._upstream.take(self, len(texts))
        fault = str(orders["fault"]) if self._upstream.index in orders["on"] else ""
        if path == b"/v1/embeddings":
            steps = whole_steps(embeddings(texts), fault)
        elif asked.get("stream"):
            steps = stream_steps(path.endswith(b"chat/completions"), orders, fault, begun_of(asked))
        else:
            steps = whole_steps(reply(path.endswith(b"chat/completions"), orders), fault)
        self._steps = iter(EARLY.get(fault) or steps)
        self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        pieces: list[bytes] = []
        for step in self._steps:
            if isinstance(step, bytes):
                pieces.append(step)
                continue
            self._transport.write(b"".join(pieces))
            self._halt(step)
            return
        # Free before the last byte can be seen.
        self._upstream.give_back(self)
        self._transport.write(b"".join(pieces))

    def _halt(self, step: float | str) -> None:
        if isinstance(step, float):
            self._timer = asyncio.get_running_loop().call_later(step, self._go_on)
            return
        if step == FOREVER:
            return
        self._upstream.give_back(self)
        if step == FIN:
            self._transport.close()
            return
        own = cast(socket.socket, self._transport.get_extra_info("socket"))
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def texts_of(asked: dict[str, Any]) -> list[str]:
    """The prompts or inputs of a call."""
    if "messages" in asked:
        return [message["content"] for message in asked["messages"] if message["role"] == "user"]
    given: Any = asked.get("prompt", asked.get("input"))
    return given if isinstance(given, list) else [given]


def begun_of(asked: dict[str, Any]) -> str:
    """What has been said already, by another replica."""
    if "messages" in asked:
        last = asked["messages"][-1]
        return str(last["content"]) if last["role"] == "assistant" else ""
    prompt = str(asked["prompt"]).partition(MARK_END)[2]
    return prompt[prompt.find(" ") :] if " " in prompt else ""


def orders_of(prompt: str) -> dict[str, Any]:
    orders: dict[str, Any] = orjson.loads(prompt.removeprefix(MARK).partition(MARK_END)[0])
    return orders


def whole_steps(value: object, fault: str) -> list[Step]:
    """A reply in one piece, and what happens in its middle."""
    data = whole(value)
    half = len(data) // 2
    match fault:
        case "rst":
            return [data[:half], PACE_S, RST]
        case "fin" | "truncate":
            return [data[:half], FIN]
        case "malformed":
            return [JSON_HEAD % (200, 7, b'{"choic')]
        case "head_then_silence" | "stall":
            return [data[:half], FOREVER]
        case "pause":
            return [data[:half], PAUSE_S, data[half:]]
        case "trickle" | "split" | "slow":
            return [data[:half], PACE_S, data[half:]]
    return [data]


def stream_steps(chat: bool, orders: dict[str, Any], fault: str, begun: str) -> list[Step]:
    """A stream, or the rest of one, and what happens within it. Ends with FIN, as llama-server's do."""
    number, tokens, at = int(orders["number"]), int(orders["tokens"]), int(orders["at"])
    if fault == "head_then_silence":
        return [HEAD, FOREVER]
    steps: list[Step] = [HEAD, chunk(progress(chat))]
    said = len(begun.split())
    for token in range(said, tokens):
        if token == at:
            steps += breaking(fault) or amid(chat, fault)
        # The first one of a chat repeats what was begun.
        repeated = begun if chat and token == said else ""
        steps.append(framed(delta(chat, repeated + token_of(number, token)), fault))
        if fault == "slow":
            steps.append(PACE_S)
    if tokens == at:
        steps += breaking(fault) or amid(chat, fault)
    if fault == "huge":
        steps.append(chunk(delta(chat, "x" * HUGE_BYTES)))
    steps += [framed(finish(chat, tokens - said + (fault == "huge")), fault), chunk(DONE), LAST_CHUNK, FIN]
    return trickled(steps) if fault == "trickle" else steps


def breaking(fault: str) -> list[Step]:
    """How a stream ends too soon."""
    match fault:
        case "rst":
            # What was written is read before the reset is seen.
            return [PACE_S, RST]
        case "fin":
            return [FIN]
        case "truncate":
            return [LAST_CHUNK, FIN]
        case "malformed":
            return [chunk(b'data: {"choices":[{"finish_reason":nul\n\n'), FOREVER]
        case "error_event":
            return [chunk(b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n'), FIN]
        case "stall":
            return [FOREVER]
    return []


def amid(chat: bool, fault: str) -> list[Step]:
    """What happens in the middle of a stream that goes on."""
    match fault:
        case "pause":
            return [PAUSE_S]
        case "split":
            whole_chunk = chunk(progress(chat))
            return [whole_chunk[:30], PACE_S, whole_chunk[30:]]
    return [PACE_S]


def framed(event: bytes, fault: str) -> bytes:
    """An event as a chunk, with pings before it or other line ends where the fault says so."""
    if fault == "pings":
        return chunk(b":\n\n") + chunk(event)
    return chunk(event.replace(b"\n", b"\r\n") if fault == "crlf" else event)


def trickled(steps: list[Step]) -> list[Step]:
    """The same in small pieces; what is long enough already stays long."""
    data = b"".join(step for step in steps if isinstance(step, bytes))[: 20 * TRICKLE_BYTES]
    rest = b"".join(step for step in steps if isinstance(step, bytes))[20 * TRICKLE_BYTES :]
    pieces: list[Step] = []
    for start in range(0, len(data), TRICKLE_BYTES):
        pieces += [data[start : start + TRICKLE_BYTES], PACE_S]
    return [*pieces, rest, FIN]


def event(chat: bool, choices: list[Any], **more: object) -> bytes:
    kind = "chat.completion.chunk" if chat else "text_completion"
    return b"data: " + orjson.dumps({"choices": choices, **names(kind), **more}) + b"\n\n"


def names(kind: str) -> dict[str, Any]:
    return {"created": 1760000000, "id": "chatcmpl-soak", "model": "stub", "system_fingerprint": "b0", "object": kind}


def progress(chat: bool) -> bytes:
    told = {"total": 7, "cache": 0, "processed": 7, "time_ms": 1}
    return event(chat, [choice(chat, "")], prompt_progress=told)


def delta(chat: bool, text: str) -> bytes:
    return event(chat, [choice(chat, text)])


def finish(chat: bool, tokens: int) -> bytes:
    nothing: dict[str, Any] = {"delta": {}} if chat else {"text": "", "logprobs": None}
    ended = {"finish_reason": "stop", "index": 0, **nothing}
    if not chat:
        return event(chat, [ended], usage=usage(tokens))
    return event(chat, [ended]) + event(chat, [], usage=usage(tokens))


def choice(chat: bool, text: str) -> dict[str, Any]:
    said = {"delta": {"content": text}} if chat else {"text": text, "logprobs": None}
    return {"finish_reason": None, "index": 0, **said}


def usage(tokens: int) -> dict[str, Any]:
    return {"completion_tokens": tokens, "prompt_tokens": 7, "total_tokens": tokens + 7}


def reply(chat: bool, orders: dict[str, Any]) -> object:
    text = "".join(token_of(orders["number"], each) for each in range(orders["tokens"]))
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    choices = [{"finish_reason": "stop", "index": 0, **said}]
    return {"choices": choices, **names(kind), "usage": usage(orders["tokens"])}


def embeddings(texts: list[str]) -> object:
    listed = [{"object": "embedding", "index": place, "embedding": vector_of(text)} for place, text in enumerate(texts)]
    spent = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": "stub", "data": listed, "usage": spent}


def error(status: int, message: str, kind: str) -> bytes:
    body = orjson.dumps({"error": {"code": status, "message": message, "type": kind}})
    return JSON_HEAD % (status, len(body), body)


# What comes instead of a reply.
EARLY: dict[str, list[Step]] = {
    "reset": [RST],
    "close": [FIN],
    "head_cut": [SPLIT_HEAD, FIN],
    "garbage": [b"SSH-2.0-llama\r\n\r\n", FIN],
    "loading": [error(503, "Loading model", "unavailable_error")],
    "status_500": [error(500, "it did not work", "server_error")],
    "status_502": [HTML_502],
    "status_400": [error(400, "no", "invalid_request_error")],
    "wrong_type": [WRONG_TYPE],
    "silence": [FOREVER],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    uvloop.run(serve(partial(Connection, Upstream(options.index, options.slots))))


if __name__ == "__main__":
    main()
