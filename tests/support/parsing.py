"""Bodies read as the gateway reads them."""

from typing import Any

import orjson
import pytest

from corral.core.call import Call, Endpoint
from corral.core.errors import RequestError
from corral.openai.parse import Policy, parse

POLICY = Policy(default_max_tokens=500, max_inputs=8)

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def read(endpoint: Endpoint, fields: dict[str, Any], policy: Policy = POLICY) -> Call:
    return parse(endpoint, orjson.dumps(fields), lambda _: policy)


def read_chat(policy: Policy = POLICY, /, **fields: Any) -> Call:
    return read(Endpoint.CHAT, {"messages": HELLO, **fields}, policy)


def read_completion(policy: Policy = POLICY, /, **fields: Any) -> Call:
    return read(Endpoint.COMPLETIONS, {"prompt": "once", **fields}, policy)


def read_embedding(policy: Policy = POLICY, /, **fields: Any) -> Call:
    return read(Endpoint.EMBEDDINGS, {"input": "once", **fields}, policy)


def refused(endpoint: Endpoint, body: bytes, policy: Policy = POLICY) -> RequestError:
    """The error that the body is answered with."""
    with pytest.raises(RequestError) as caught:
        parse(endpoint, body, lambda _: policy)
    return caught.value


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}
