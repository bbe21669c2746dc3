"""What the end-to-end tests ask a gateway, and what they look at afterwards: the reply, its text and its record."""

from itertools import count
from typing import Any

from support.gateway import KEY, Gateway
from support.raw_client import RawClient, Reply, ask

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

# The three ways in which Corral gets a reply: fetched in one piece, gathered from a stream, relayed.
MODES: dict[str, dict[str, Any]] = {
    "whole": {"max_tokens": 8},
    "gathered": {"max_tokens": 30},
    "stream": {"max_tokens": 30, "stream": True},
}
DONE = "[DONE]"

_ids = count(1)


def new_id() -> str:
    """A request id by which a test finds its own record."""
    return f"test-{next(_ids)}"


def chat(content: str = "hello", *, model: str = "one", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def completion(prompt: object = "once upon a time", *, model: str = "one", **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, **fields}


def credentials(key: str | None, **headers: str) -> dict[str, str]:
    """The headers of a request by a client with this key."""
    given = {"authorization": f"Bearer {key}"} if key is not None else {}
    return {"content-type": "application/json", **given, **headers}


def post(gateway: Gateway, path: str, body: object, *, key: str | None = KEY, **headers: str) -> Reply:
    """One request on a connection of its own, read to the end of the connection."""
    return ask(gateway.port, path, body, **credentials(key, **headers))


def begin(gateway: Gateway, path: str, body: object, *, key: str | None = KEY, **headers: str) -> RawClient:
    """A request whose reply nobody has read yet."""
    client = RawClient(gateway.port)
    client.send("POST", path, body, **credentials(key, Connection="close", **headers))
    return client


def send_raw(gateway: Gateway, *lines: str | bytes, body: bytes = b"", until: bytes | None = None) -> Reply:
    """A request as these lines spell it; the reply is read to the end of the connection, or to ``until``."""
    head = b"".join((line.encode() if isinstance(line, str) else line) + b"\r\n" for line in lines)
    with RawClient(gateway.port) as client:
        client.socket.sendall(head + b"\r\n" + body)
        return client.receive(until=until)


def record_of(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The record of an exchange, once it has ended; there is exactly one."""
    gateway.until(lambda: _records(gateway, request_id), f"a record of {request_id}")
    (record,) = _records(gateway, request_id)
    return record


def text_of(reply: Reply) -> str:
    """What the model said in a reply, whole or streamed."""
    objects = [reply.json] if "json" in reply.headers["content-type"] else reply.chunks
    choices = [choice for each in objects if "choices" in each for choice in each["choices"]]
    return "".join(_text(choice) for choice in choices)


def error_of(reply: Reply) -> dict[str, Any]:
    """The error that a whole reply consists of, in OpenAI's shape."""
    assert reply.headers["content-type"] == "application/json", reply
    return checked_error(reply.json)


def checked_error(body: dict[str, Any]) -> dict[str, Any]:
    """The error in a body that holds nothing else, with all four keys and a message for people."""
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str), error
    assert error["message"], error
    return error


def last_error(reply: Reply) -> dict[str, Any]:
    """The error event that ends a stream which has begun; there is no ``[DONE]``, before or after it."""
    assert reply.status == 200, reply
    assert DONE not in reply.events, reply.events
    return checked_error(reply.chunks[-1])


def _records(gateway: Gateway, request_id: str) -> list[dict[str, Any]]:
    return [record for record in gateway.records() if record["request_id"] == request_id]


def _text(choice: dict[str, Any]) -> str:
    said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
    return str(said.get("content") or "")
