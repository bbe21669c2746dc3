"""The fault matrix, upstream: what a llama-server does wrong, and what becomes of a request that meets it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from support.fake import FakeLlama
from support.front import Front
from support.matrix import (
    HUGE_BYTES,
    Expected,
    Fault,
    Tally,
    cut,
    ensure_closed,
    ensure_recorded,
    ensure_told,
    failed,
    given_up,
    hidden,
    now,
    said_to,
)
from support.raw_client import Reply
from support.talk import CHAT, COMPLETIONS, MODES, chat, completion, new_id, post

LOST, BAD, FAILED = "upstream_connection_lost", "upstream_bad_reply", "upstream_failed"
# So many events come first: progress of the prompt, the role, and some tokens.
LATE = 8
# Asked in turns, the fault is met as it should be, soon.
TURNS = 10
# Goes on until it is cut: a reply that is not over when it is given up must be left.
ENDLESS = 'script:{"count": 100000}'
PACE_S = 0.02
# No reply of these rows is larger, but for a huge event that passes.
LARGEST_BYTES = 1_000_000


@dataclass(frozen=True)
class Row:
    """A fault and what is to come of it in each mode, ``None`` where it cannot strike."""

    fault: Fault
    stream: Expected | None = None
    gathered: Expected | None = None
    whole: Expected | None = None
    # Completions have short time limits here, chats have long ones.
    path: str = CHAT
    content: str = "hello"
    fields: dict[str, Any] = field(default_factory=dict)
    # Of the fake.
    settings: dict[str, float] = field(default_factory=dict)
    # A fault at the door strikes who connects: the connections that there are break when they are used.
    at_the_door: bool = False

    def expected(self, mode: str) -> Expected | None:
        modes: dict[str, Expected | None] = {"stream": self.stream, "gathered": self.gathered, "whole": self.whole}
        return modes[mode]

    def body(self, mode: str, model: str) -> dict[str, Any]:
        make: Callable[..., dict[str, Any]] = chat if self.path == CHAT else completion
        return make(self.content, model=model, **MODES[mode] | self.fields)


def every(fault: Fault, expected: Expected, **more: Any) -> Row:
    """The same in all modes."""
    return Row(fault, expected, expected, expected, **more)


def status(code: int, **more: object) -> Fault:
    return {"kind": "status", "status": code, **more}


# -- before the first byte: one replica, which fails once ------------------------

ONCE: dict[str, tuple[Fault, str]] = {
    "503 loading model": ({"kind": "loading"}, "model_loading"),
    "429": (status(429), FAILED),
    "502": (status(502), FAILED),
    "503": (status(503), FAILED),
    "503 in HTML": (status(503, body="html"), FAILED),
    "503 without a body": (status(503, body="empty"), FAILED),
    "504 in plain text": (status(504, body="text"), FAILED),
    "FIN before a byte": ({"kind": "close"}, LOST),
    "RST before a byte": ({"kind": "reset"}, LOST),
    "headers cut": ({"kind": "head_cut"}, LOST),
    "not HTTP": ({"kind": "garbage"}, BAD),
    "wrong content-type": ({"kind": "wrong_type"}, BAD),
}
ROWS: dict[str, Row] = {
    f"{name}, once": every(fault | {"times": 1}, hidden(reason)) for name, (fault, reason) in ONCE.items()
}
ROWS |= {
    "429 + Retry-After, once": every(status(429, retry_after="1", times=1), hidden(FAILED)),
    # As long as nobody is ready a request waits in the queue; who notices first makes the difference.
    "connect refused, for a moment": every(
        {"kind": "refuse", "seconds": 0.3}, hidden("upstream_unreachable", attempts=(1, 2), seen=1), at_the_door=True
    ),
    "connect hang, for a moment": every(
        {"kind": "connect_hang", "seconds": 0.3}, hidden("upstream_timeout", attempts=(1, 2), seen=1), at_the_door=True
    ),
}

# -- before the first byte: it goes on failing -----------------------------------

# The upstream's own opinion of the request: what the client is told.
STAYING: dict[str, tuple[Fault, int, str]] = {
    "400": (status(400), 400, "invalid_request"),
    "400 in HTML": (status(400, body="html"), 400, "invalid_request"),
    "401": (status(401), 502, FAILED),
    "403": (status(403), 502, FAILED),
    "404": (status(404), 502, FAILED),
    "422": (status(422), 422, "invalid_request"),
    "500 before body": (status(500), 502, FAILED),
    "500 in HTML": (status(500, body="html"), 502, FAILED),
    "500 in plain text": (status(500, body="text"), 502, FAILED),
    "500 without a body": (status(500, body="empty"), 502, FAILED),
    "501": (status(501), 501, "unsupported"),
}
ROWS |= {
    name: every(fault, failed(code, told, "upstream_error" if told == 502 else "refused"))
    for name, (fault, told, code) in STAYING.items()
}
# It may take time, and a request waits for it only so long.
UNREADY = replace(failed("model_not_ready", 503, "unavailable"), attempts=(0, 1, 2, 3), seen=0, ends_waiting=True)
ROWS |= {
    "503 in HTML, for good": every(status(503, body="html"), given_up(FAILED)),
    "wrong content-type, for good": every({"kind": "wrong_type"}, given_up(BAD)),
    "429 + Retry-After of 2 min": every(
        status(429, retry_after="120"), replace(failed(FAILED), headers=(("retry-after", "120"),))
    ),
    "connect refused, for good": every({"kind": "refuse"}, UNREADY, at_the_door=True),
    "connect hang, for good": every({"kind": "connect_hang"}, UNREADY, at_the_door=True),
}
# Whoever has the request may be at work on it still: it is not sent to another.
SILENT = failed("upstream_timeout", 504, "timeout", says="'first_byte'")
ROWS |= {
    "silence before headers": every({"kind": "silence"}, SILENT, path=COMPLETIONS),
    "headers then silence": every({"kind": "head_then_silence"}, SILENT, path=COMPLETIONS),
}

FINE = Expected()

# -- within the reply ------------------------------------------------------------

# Ways to break off, and the code that the client is told.
BREAKS: dict[str, tuple[str, str]] = {
    "RST": ("rst", LOST),
    "FIN without finish_reason": ("fin", LOST),
    "end without finish_reason": ("truncate", LOST),
    "malformed SSE line": ("malformed", BAD),
    "error event": ("error_event", FAILED),
}
for name, (kind, code) in BREAKS.items():
    halved = kind in ("rst", "fin", "truncate")
    # RST takes along what nobody has read yet.
    paced = {"token_s": PACE_S} if kind == "rst" else {}
    ROWS[f"{name} after {LATE} events, once"] = Row(
        {"kind": kind, "after": LATE, "times": 1},
        hidden(code),
        hidden(code),
        hidden(code) if halved else None,
        settings=paced,
    )
    # Each attempt goes on with what the others have left off, and the fourth comes to the end.
    ROWS[f"{name} after {LATE} events"] = Row(
        {"kind": kind, "after": LATE},
        hidden(code, attempts=(4,)),
        hidden(code, attempts=(4,)),
        given_up(code) if halved else None,
        settings=paced,
    )
    ROWS[f"{name} after {LATE} events, without end"] = Row(
        {"kind": kind, "after": LATE},
        replace(cut(code), attempts=(5,), retried=code),
        replace(given_up(code), attempts=(5,), estimated=True),
        content=ENDLESS,
        fields={"max_tokens": 100_000},
        settings={"token_s": PACE_S},
    )
    for after in (0, 1):
        ROWS[f"{name} after {after} events, once"] = Row(
            {"kind": kind, "after": after, "times": 1}, hidden(code), hidden(code)
        )
    ROWS[f"{name} before a token, for good"] = Row({"kind": kind, "after": 1}, given_up(code), given_up(code))
ROWS |= {
    # All has been said, and nobody need be asked again.
    "no [DONE]": Row({"kind": "no_done"}, hidden(LOST, seen=1), hidden(LOST, seen=1)),
    "stall between chunks": Row(
        {"kind": "stall", "after": LATE},
        cut("upstream_timeout", "'between_tokens'"),
        replace(failed("upstream_timeout", 504, "timeout", says="'between_tokens'"), estimated=True),
        path=COMPLETIONS,
    ),
    "no end, up to the total limit": Row(
        {"kind": "pings"},
        cut("upstream_timeout", "'total'"),
        replace(
            failed("upstream_timeout", 504, "timeout", says="'total'"),
            estimated=True,
            headers=(("x-should-retry", "false"),),
        ),
        path=COMPLETIONS,
        content='script:{"count": 30}',
        settings={"token_s": 0.2},
    ),
    "huge event": Row(
        {"kind": "huge", "after": LATE, "size": HUGE_BYTES}, replace(FINE, huge=1), replace(FINE, huge=1)
    ),
    "huge event without end": Row(
        {"kind": "huge", "after": LATE, "size": 20 * 1024 * 1024},
        hidden(BAD, attempts=(4,)),
        hidden(BAD, attempts=(4,)),
    ),
}

# -- odd and complete: a success all the same ------------------------------------

ROWS |= {
    "usage chunk missing": Row({"kind": "no_usage"}, replace(FINE, estimated=True), replace(FINE, estimated=True)),
    "finish_reason twice": Row({"kind": "double_finish"}, FINE, FINE),
    "comments between": Row({"kind": "pings"}, FINE, FINE),
    "CRLF": Row({"kind": "crlf"}, FINE, FINE),
    "slow trickle": every({"kind": "trickle", "size": 400, "seconds": 0.005}, FINE),
    "a byte at a time": every({"kind": "trickle", "size": 1}, FINE),
    "two segments an event": every({"kind": "split"}, FINE),
    "one segment for all": every({"kind": "one_segment"}, FINE),
}


CELLS = [(name, mode) for name, row in ROWS.items() for mode in MODES if row.expected(mode) is not None]


@pytest.mark.parametrize(("name", "mode"), CELLS)
def test_upstream(front: Front, name: str, mode: str, cell: Callable[[str, str], None]) -> None:
    row = ROWS[name]
    expected = row.expected(mode)
    assert expected is not None
    cell(f"upstream: {name}", mode)
    for _ in range(TURNS):
        cause(front, row)
        tally, request_id = Tally(front.gateway), new_id()
        reply, ended_at = ask(front, row, mode, "one", request_id)
        if not reused(front.one, row.path):
            break
    ensure_told(reply, expected, said_to(row.path, row.body(mode, "one")), stream=mode == "stream")
    assert len(reply.raw) < (HUGE_BYTES if expected.code is None else 0) + LARGEST_BYTES
    record = ensure_recorded(front.gateway, request_id, expected)
    tally.ensure_added(expected, record["attempts"])
    seen = [each for each in front.one.requests(row.path) if each["faults"] != ["reset_on_reuse"]]
    assert len(seen) == (record["attempts"] if expected.seen is None else expected.seen)
    ensure_closed([front.one], row.path, ended_at)


def cause(front: Front, row: Row) -> None:
    """Put the fault in force; connections that were there before are gone."""
    front.one.reset()
    front.one.set(**row.settings)
    if row.at_the_door:
        front.one.fault("reset_on_reuse", path="*")
    front.one.fault(**row.fault)


def reused(fake: FakeLlama, path: str) -> list[dict[str, Any]]:
    """Requests that met the end of a connection which others had used before, as it ends when it has been idle.

    Corral sends them again at once and counts no attempt, which is a row of its own; whoever watches the replica may
    just have left such a connection behind.
    """
    return [each for each in fake.requests(path) if each["nth"] > 1 and {"close", "reset"} & set(each["faults"])]


def ask(front: Front, row: Row, mode: str, model: str, request_id: str) -> tuple[Reply, float]:
    """The reply, and when it had come to its end."""
    reply = post(front.gateway, row.path, row.body(mode, model), **{"x-request-id": request_id})
    return reply, now()


# -- beside a replica that is well -----------------------------------------------

# The last resort of one replica alone would be to wait, or to give up.
BESIDE: dict[str, Fault] = {name: fault for name, (fault, _) in ONCE.items()}
BESIDE["503 + Retry-After of 1 h"] = status(503, retry_after="3600")
AT_THE_DOOR: dict[str, Fault] = {"connect refused": {"kind": "refuse"}, "connect hang": {"kind": "connect_hang"}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BESIDE)
def test_upstream_beside_one_that_is_well(front: Front, name: str, mode: str, cell: Callable[[str, str], None]) -> None:
    cell(f"upstream: {name}, beside another", mode)
    row, gateway = Row(BESIDE[name]), front.gateway
    front.left.fault(**row.fault)
    for _ in range(TURNS):
        tally, request_id = Tally(gateway), new_id()
        reply, ended_at = ask(front, row, mode, "two", request_id)
        ensure_told(reply, Expected(), said_to(CHAT, row.body(mode, "two")), stream=mode == "stream")
        met = len(front.left.requests(CHAT)) - len(reused(front.left, CHAT))
        record = ensure_recorded(gateway, request_id, Expected(attempts=(1 + met,)))
        tally.ensure_added(Expected(), 1 + met)
        assert record["replica"] == "two/1"
        ensure_closed(front.fakes, CHAT, ended_at)
        if met:
            break
    assert met == 1
    assert front.right.requests(CHAT)[-1]["body"] == front.left.requests(CHAT)[-1]["body"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", AT_THE_DOOR)
def test_a_replica_that_nobody_can_reach_is_passed_over(
    front: Front, name: str, mode: str, cell: Callable[[str, str], None]
) -> None:
    cell(f"upstream: {name}, beside another", mode)
    front.left.fault("reset_on_reuse", path="*")
    front.left.fault(**AT_THE_DOOR[name])
    row = Row(AT_THE_DOOR[name])
    for _ in range(3):
        request_id = new_id()
        reply, _ended_at = ask(front, row, mode, "two", request_id)
        ensure_told(reply, Expected(), said_to(CHAT, row.body(mode, "two")), stream=mode == "stream")
        record = ensure_recorded(front.gateway, request_id, Expected(attempts=(1, 2)))
        assert record["replica"] == "two/1"
    assert not [request for request in front.left.requests(CHAT) if request["status"] == 200]
    assert len(front.right.requests(CHAT)) == 3


def test_a_connection_that_is_reset_on_its_second_use_costs_no_attempt(
    front: Front, cell: Callable[[str, str], None]
) -> None:
    cell("upstream: connection reset on reuse", "whole")
    ids = [new_id(), new_id()]
    row = every({"kind": "reset_on_reuse"}, FINE)
    front.one.fault(**row.fault)
    for request_id in ids:
        reply, _ended_at = ask(front, row, "whole", "one", request_id)
        ensure_told(reply, FINE, said_to(CHAT, row.body("whole", "one")), stream=False)
        ensure_recorded(front.gateway, request_id, FINE)
    seen = front.one.requests(CHAT)
    assert sum(request["ended"] == "complete" for request in seen) == 2
    assert len(seen) > 2
