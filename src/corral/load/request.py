"""One request of a load test, and what is measured of it."""

import asyncio
from time import perf_counter
from typing import Any

import orjson

from corral.core.errors import BadReply, ConnectFailed, ConnectionLost, CorralError, UpstreamTimeout
from corral.core.sse import DONE, Splitter, payload
from corral.load.plan import Plan
from corral.load.report import Sample
from corral.upstream.wire import Client, Reply

# An embedding array of float32 in JSON is some 10 KiB per input; nobody
# measures with replies larger than this.
REPLY_LIMIT_BYTES = 64 * 1024 * 1024

# What stands in the table for a request that has no error code of the server's.
FAULTS: dict[type[CorralError], str] = {
    ConnectFailed: "connection_refused",
    ConnectionLost: "connection_lost",
    BadReply: "bad_reply",
    UpstreamTimeout: "timeout",
}


async def ask(client: Client, plan: Plan) -> Sample:
    """Send one request and measure it; whatever goes wrong is in the sample, not raised."""
    sample = Sample()
    started = perf_counter()
    try:
        async with asyncio.timeout(plan.timeout_s):
            with await _send(client, plan) as reply:
                reply.limit(plan.timeout_s, "total")
                sample.status = reply.status
                await _measure(reply, plan, sample, started)
    except TimeoutError:
        sample.error = "timeout"
    except CorralError as error:
        sample.error = FAULTS.get(type(error), error.code or "failed")
    sample.total_s = perf_counter() - started
    return sample


async def _send(client: Client, plan: Plan) -> Reply:
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + plan.api_key.encode())]
    return await client.send(
        plan.address,
        "POST",
        plan.endpoint.path,
        headers=headers,
        body=orjson.dumps(plan.body),
        connect_s=plan.timeout_s,
        head_s=plan.timeout_s,
    )


async def _measure(reply: Reply, plan: Plan, sample: Sample, started: float) -> None:
    if reply.status == 200 and plan.streams:
        stream = _Stream(sample, started)
        await reply.splice(stream.feed)
        if not stream.done:
            sample.error = sample.error or "stream_cut"
        return
    answer = _json(await reply.read(REPLY_LIMIT_BYTES))
    if reply.status == 200:
        sample.count(answer.get("usage"))
    else:
        sample.error = _code(answer)


class _Stream:
    """Reads the events of one reply as they come. Writer: the reply's callback, into the sample."""

    def __init__(self, sample: Sample, started: float) -> None:
        self.done = False
        self._sample = sample
        self._started = started
        self._splitter = Splitter()

    def feed(self, piece: bytes) -> None:
        now_s = perf_counter() - self._started
        for event in self._splitter.feed(piece):
            said = payload(event)
            if said == DONE:
                self.done = True
            elif said is not None:
                self._hear(_json(said), now_s)

    def _hear(self, chunk: dict[str, Any], now_s: float) -> None:
        if "error" in chunk:
            self._sample.error = _code(chunk)
        self._sample.count(chunk.get("usage"))
        if any(_has_content(choice) for choice in chunk.get("choices") or []):
            self._sample.mark_token(now_s)


def _has_content(choice: dict[str, Any]) -> bool:
    """Whether a streamed choice carries something generated, and not only the role or the reason of its end."""
    delta = choice.get("delta") or {}
    return any((choice.get("text"), delta.get("content"), delta.get("reasoning_content"), delta.get("tool_calls")))


def _json(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadReply("the answer is not JSON") from error
    if not isinstance(parsed, dict):
        raise BadReply("the answer is not a JSON object")
    return parsed


def _code(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    if not isinstance(error, dict):
        return "failed"
    return str(error.get("code") or error.get("type") or "failed")
