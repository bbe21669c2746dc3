"""One cell of the fault matrix: a request in trouble, and what everybody must have seen of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fake.text import NOTHING_BEGUN, chat_prompt, plan
from support.fake import FakeLlama
from support.gateway import Gateway, sum_of
from support.raw_client import Reply
from support.talk import CHAT, DONE, error_of, last_error, record_of, text_of

# The promise, by the clock that all processes of this machine share.
CLOSED_WITHIN_S = 0.1
# A huge event that passes.
HUGE_BYTES = 3_000_000
Fault = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """What the client gets, what the record says, and how often a replica was asked. ``code``: of the error, if any."""

    code: str | None = None
    status: int = 200
    outcome: str = "ok"
    # So many attempts; one of these where it depends on who notices first, the request or who watches the replica.
    attempts: tuple[int, ...] = (1,)
    # Requests that reached the replica in trouble; None: each attempt did.
    seen: int | None = None
    # Why it was tried again, as the metric of retries has it.
    retried: str | None = None
    # It ends in the queue, so that the last attempt too was followed by a retry.
    ends_waiting: bool = False
    # In the message of the error.
    says: str = ""
    # The usage is an estimate; None: nothing was used.
    estimated: bool | None = False
    headers: tuple[tuple[str, str], ...] = ()
    # Events of HUGE_BYTES that have passed.
    huge: int = 0


def hidden(retried: str, *, attempts: tuple[int, ...] = (2,), seen: int | None = None) -> Expected:
    """Another attempt succeeds, and the client sees nothing of the first."""
    return Expected(attempts=attempts, seen=seen, retried=retried)


def cut(code: str, says: str = "", *, estimated: bool = True) -> Expected:
    """The stream ends with an error event and no [DONE], and nobody is asked again."""
    return Expected(code, outcome="cut", says=says, estimated=estimated)


def failed(
    code: str, status: int = 502, outcome: str = "upstream_error", *, attempts: int = 1, says: str = ""
) -> Expected:
    """The status tells of it."""
    return Expected(code, status, outcome, attempts=(attempts,), says=says, estimated=None)


def given_up(code: str) -> Expected:
    """The last of three attempts fails like the first."""
    return Expected(code, 502, "upstream_error", attempts=(3,), retried=code, estimated=None)


class Tally:
    """The counters of a gateway before a cell; asserts what one exchange adds to them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._before = gateway.get("/metrics").text

    def ensure_added(self, expected: Expected, attempts: int) -> None:
        """One exchange with this outcome and no other, and a retry for each attempt but the first."""
        retries = attempts if expected.ends_waiting else max(0, attempts - 1)
        self._gateway.until(lambda: self._added("corral_requests_total") >= 1, "counted")
        assert self._added("corral_requests_total") == 1
        assert self._added("corral_requests_total", outcome=expected.outcome) == 1
        assert self._added("corral_retries_total") == retries
        if expected.retried is not None:
            assert self._added("corral_retries_total", reason=expected.retried) == retries

    def _added(self, name: str, **labels: str) -> float:
        now = self._gateway.get("/metrics").text
        return sum_of(now, name, **labels) - sum_of(self._before, name, **labels)


def ensure_told(reply: Reply, expected: Expected, said: str, *, stream: bool) -> None:
    """The client has got what it should; ``said`` is what the model says to it."""
    assert reply.status == expected.status, reply
    if expected.code is None:
        assert text_of(reply).count("x" * HUGE_BYTES) == expected.huge
        assert text_of(reply).replace("x" * HUGE_BYTES, "") == said
        assert not stream or reply.events[-1] == DONE
        assert not stream or reply.events.count(DONE) == 1
        assert not stream or not [chunk for chunk in reply.chunks if "error" in chunk]
        if not stream and not expected.estimated:
            # Of the fake's words each is a token.
            assert reply.json["usage"]["completion_tokens"] == len(said.split())
        return
    if expected.status == 200:
        error = last_error(reply)
        # The HTTP ends in good order.
        assert reply.raw.endswith(b"\r\n0\r\n\r\n")
        assert text_of(reply)
        assert said.startswith(text_of(reply))
    else:
        error = error_of(reply)
    assert error["code"] == expected.code
    assert expected.says in error["message"]
    assert not [secret for secret in ("127.0.0.1", "<html>", "Traceback") if secret in error["message"]]
    assert dict(expected.headers).items() <= reply.headers.items()


def ensure_recorded(gateway: Gateway, request_id: str, expected: Expected) -> dict[str, Any]:
    """There is exactly one record, and it tells the truth; it is returned."""
    record = record_of(gateway, request_id)
    told = (record["status"], record["outcome"], record["error_code"])
    assert told == (expected.status, expected.outcome, expected.code)
    assert record["attempts"] in expected.attempts
    if expected.estimated is not None:
        assert record["estimated"] is expected.estimated
        assert record["prompt_tokens"] > 0
        assert record["completion_tokens"] > 0
    return record


def ensure_closed(fakes: Sequence[FakeLlama], path: str, ended_at: float) -> None:
    """Upstream connections were closed when the exchange ended; only one that gave a whole reply may be used again."""
    for fake in fakes:
        for number, request in enumerate(fake.requests(path)):
            whole = request["ended"] == "complete" and request["status"] == 200 and not streamed(request)
            if not whole:
                assert closed_at(fake, path, number) <= ended_at + CLOSED_WITHIN_S


def closed_at(fake: FakeLlama, path: str, number: int) -> float:
    """When the connection of a request was closed."""
    fake.until(lambda _: fake.requests(path)[number]["closed_at"] is not None)
    closed: float = fake.requests(path)[number]["closed_at"]
    return closed


def streamed(request: dict[str, Any]) -> bool:
    return bool(request["body"].get("stream"))


def said_to(path: str, body: dict[str, Any]) -> str:
    """What the fake says to a request when nothing is wrong."""
    prompt, begun = chat_prompt(body["messages"]) if path == CHAT else (body["prompt"], NOTHING_BEGUN)
    pieces = plan(body, prompt, index=0, begun=begun, tokens=16).pieces
    return "".join(piece.text for piece in pieces)


def now() -> float:
    """The clock of the fakes' records, which is one for all processes of a machine."""
    return time.monotonic()
