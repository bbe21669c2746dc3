"""Whether an answer is right: every token of it, its status, and how a stream that broke off says so."""

from typing import Any

import orjson

from soak_client import Answer
from soak_plan import Kind, Plan, vector_of

# What any request may be told while the faults of others make replicas unready.
UNAVAILABLE_CODES = frozenset({"queue_full", "queue_timeout", "model_not_ready"})
DONE = b"data: [DONE]"

# How an exchange came out.
RIGHT, REFUSED, CUT, UNAVAILABLE, LEFT = "answered", "refused", "cut and told", "unavailable", "client left"


class Wrong(Exception):
    """What must not be; says what it is."""


def judge(plan: Plan, answer: Answer) -> str:
    """How it came out; raises Wrong."""
    if answer.hung:
        raise Wrong("hangs")
    if answer.status == -1:
        raise Wrong("the answer is not HTTP")
    if not answer.complete:
        if plan.manners.stays:
            so_far = f"status {answer.status}, {len(answer.body)} bytes, {answer.seconds:.3f} s, {answer.ending}"
            raise Wrong(f"the connection ends within the answer to its request {answer.nth} ({so_far})")
        return LEFT
    if answer.headers.get(b"x-request-id") != plan.request_id.encode():
        raise Wrong("the request's id is another one")
    if plan.kind is Kind.MODELS:
        return _must(answer.status == 200, f"status {answer.status}", RIGHT)
    try:
        return _judge_ok(plan, answer) if answer.status == 200 else _judge_error(plan, answer)
    except (LookupError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
        raise Wrong(f"what came is in another shape ({error!r}): {bytes(answer.body[-200:])!r}") from error


def _judge_error(plan: Plan, answer: Answer) -> str:
    code = error_of(answer.body)["code"]
    if answer.status == 503 and code in UNAVAILABLE_CODES:
        return UNAVAILABLE
    return _must(answer.status in plan.statuses, f"status {answer.status} {code}", REFUSED)


def _judge_ok(plan: Plan, answer: Answer) -> str:
    if plan.kind.streamed:
        return _judge_stream(plan, answer)
    _must(200 in plan.statuses, "status 200")
    told = orjson.loads(answer.body)
    if plan.kind is Kind.EMBEDDINGS:
        vectors = [(each["index"], each["embedding"]) for each in told["data"]]
        expected = [(place, vector_of(text)) for place, text in enumerate(plan.texts)]
        return _must(vectors == expected, "embeddings of something else", RIGHT)
    choice = told["choices"][0]
    text = choice["text"] if plan.kind is Kind.TEXT else choice["message"]["content"]
    _must(text == plan.text, f"the text is not what was said: {text[:80]!r}")
    _must(told["usage"]["completion_tokens"] == plan.completion_tokens, f"usage is {told['usage']}")
    return _must(choice["finish_reason"] == "stop", f"finish_reason {choice['finish_reason']}", RIGHT)


def _judge_stream(plan: Plan, answer: Answer) -> str:
    body = bytes(answer.body).replace(b"\r\n", b"\n")
    _must(body.endswith(b"\n\n"), "the stream ends within an event")
    events = [event for event in body.split(b"\n\n") if event.startswith(b"data: ")]
    others = [event for event in body.split(b"\n\n") if event and not event.startswith((b"data: ", b":"))]
    _must(not others, f"no event and no comment: {others[:1]}")
    if not events or events[-1] != DONE:
        return _judge_cut(plan, events)
    _must(200 in plan.statuses, "[DONE] after a fault that no retry helps against")
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    _must(not any("error" in chunk for chunk in chunks), "[DONE] after an error event")
    _must(said(chunks) == plan.text, f"tokens are missing or astray: {said(chunks)[:80]!r}")
    finished = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    _must(finished == ["stop"], f"finish_reasons {finished}")
    reports = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
    return _must(reports == [plan.completion_tokens] * plan.usage, f"usage reports {reports}", RIGHT)


def _judge_cut(plan: Plan, events: list[bytes]) -> str:
    """A stream that did not come to its end: what came is right so far, and the last event says what happened."""
    _must(bool(events), "a stream without any event")
    *chunks, last = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    _must("error" in last, "a stream that ends with neither [DONE] nor an error event")
    _must(plan.text.startswith(said(chunks)), f"tokens before the cut are astray: {said(chunks)[:80]!r}")
    if last["error"]["code"] in UNAVAILABLE_CODES:
        return UNAVAILABLE
    return _must(bool(plan.fault.statuses), f"cut without a fault: {last['error']}", CUT)


def said(chunks: list[Any]) -> str:
    """The text of a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def error_of(body: bytes | bytearray) -> dict[str, Any]:
    try:
        error: dict[str, Any] = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise Wrong(f"an error in another shape: {bytes(body[:80])!r}") from None
    return error


def _must(claim: bool, otherwise: str, outcome: str = "") -> str:
    if not claim:
        raise Wrong(otherwise)
    return outcome
