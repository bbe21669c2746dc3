"""The lines of the journal: JSON arrays, one for each exchange, and what is said later of those before.

A line is ``[sequence, closings, outcome, …]`` with the fields of ``FIELDS``. One without an outcome is a *seal*:
its answer was complete, and its end had not been sent yet. How it ended is its *closing*, which stands on a later
line: its sequence number where all went well, else ``[sequence, outcome, status, error code]``. A line of closings
alone has the sequence number 0 and nothing else. The first line of a file is an object that tells the format.
"""

import json
from collections.abc import Callable
from typing import Any

import orjson

from corral.core.record import Outcome, Record

# The format; a file of another one is left alone.
FORMAT = 1
FIELDS = (
    "sequence",
    "closings",
    "outcome",
    "request_id",
    "ended",
    "client",
    "key_id",
    "endpoint",
    "model",
    "replica",
    "status",
    "error_code",
    "stream",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "estimated",
    "ttft_s",
    "duration_s",
    "queue_wait_s",
    "slot_s",
    "attempts",
    "resumed",
)

# Enum looks its members up in Python.
OK = Outcome.OK

# Beyond what anybody counts, and small enough for sums.
MOST = 2**48
LONGEST = 1000
OPTIONAL = {"error_code", "ttft_s", "queue_wait_s"}

# A closing: the sequence number alone, or with outcome, status and error code.
Closing = int | tuple[int, str, int, str | None]
Line = list[Any]


def exchange_line(record: Record, closings: list[Closing], outcome: Outcome | None, now: float) -> bytes:
    """The line of an exchange, with closings of others; ``outcome`` is None for a seal, ``now`` by the loop's clock.

    Every exchange waits for it: what it tells is worked out here, as each call would take as long as all the sums.
    """
    usage, opened_at = record.usage, record.opened_at
    queued_at, leased_at, first_byte_at = record.queued_at, record.leased_at, record.first_byte_at
    duration_s = now - opened_at
    line = (
        record.sequence,
        closings,
        None if outcome is None else outcome.label,
        record.request_id,
        # By the loop's clock, so that a step of the wall clock does not put the end before the start.
        record.opened_unix_s + duration_s,
        record.client,
        record.key_id,
        record.endpoint.label,
        record.model,
        record.replica,
        record.status,
        record.error_code,
        record.stream,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.estimated,
        None if first_byte_at is None else first_byte_at - opened_at,
        duration_s,
        None if queued_at is None else (leased_at or now) - queued_at,
        # How long it has held slots, times their number.
        0.0 if leased_at is None else (now - leased_at) * record.slots,
        record.attempts,
        len(record.resumed),
    )
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        return _encoded_otherwise(line)


def closing(record: Record) -> Closing:
    """How an exchange has ended whose line was a seal, where not all went well; else its sequence number says it."""
    return record.sequence, record.outcome.label, record.status, record.error_code


def closings_line(closings: list[Closing]) -> bytes:
    """A line that tells nothing but closings."""
    return encoded((0, closings))


def head_line(run: str, number: int) -> bytes:
    """The first line of a file."""
    return encoded({"format": FORMAT, "run": run, "file": number, "fields": FIELDS})


def encoded(value: object) -> bytes:
    """As JSON with a line's end."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        return _encoded_otherwise(value)


def decoded(piece: bytes) -> tuple[list[Line], int]:
    """The lines of a piece that holds whole ones; and how many could not be read, which are left out."""
    try:
        # All at once takes half of the time.
        lines: list[Line] = orjson.loads(b"[%b]" % piece[:-1].replace(b"\n", b","))
    except orjson.JSONDecodeError:
        return _decoded_singly(piece)
    return (lines, 0) if len(lines) == piece.count(b"\n") else _decoded_singly(piece)


def format_of(head: bytes) -> int:
    """The format that the first line of a file tells; 0 where it tells none."""
    try:
        told = orjson.loads(head)
    except orjson.JSONDecodeError:
        return 0
    return told.get("format", 0) if isinstance(told, dict) else 0


def cleaned(line: object) -> Line:
    """The line with what the columns take and nothing else; empty where it is none at all."""
    if not isinstance(line, list) or len(line) not in (2, len(FIELDS)) or not isinstance(line[1], list):
        return []
    closings = [each for each in map(_cleaned_closing, line[1]) if each is not None]
    clean = [_whole(line[0]), closings]
    if len(line) == 2 or not clean[0]:
        return [0, closings]
    clean.append(None if line[2] is None else _text(line[2]))
    for name, value in zip(FIELDS[3:], line[3:], strict=True):
        if name in OPTIONAL and value is None:
            clean.append(None)
        else:
            clean.append(KINDS[name](value))
    return clean


def _encoded_otherwise(value: object) -> bytes:
    """With half of a surrogate pair, or a whole number beyond 64 bits; ``cleaned`` mends it when it is read."""
    return json.dumps(value).encode() + b"\n"


def _decoded_singly(piece: bytes) -> tuple[list[Line], int]:
    lines: list[Line] = []
    bad = 0
    for each in piece.splitlines():
        try:
            lines.append(json.loads(each))
        except (ValueError, RecursionError):
            bad += 1
    return lines, bad


def _cleaned_closing(told: object) -> Closing | None:
    if isinstance(told, list) and len(told) == 4:
        code = None if told[3] is None else _text(told[3])
        return _whole(told[0]), _text(told[1]), _whole(told[2]) % 1000, code
    return told if isinstance(told, int) and 0 < told < MOST else None


def _text(value: object) -> str:
    text = value if isinstance(value, str) else ""
    # PostgreSQL takes no NUL, and nobody takes half of a surrogate pair.
    return text.replace("\0", "").encode(errors="replace").decode()[:LONGEST]


def _whole(value: object) -> int:
    return min(max(value, 0), MOST) if isinstance(value, int) else 0


def _small(value: object) -> int:
    return min(_whole(value), 2**31 - 1)


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < MOST else 0.0


# What each column takes, for ``cleaned``.
KINDS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(("request_id", "client", "key_id", "endpoint", "model", "replica", "error_code"), _text),
    **dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), _whole),
    **dict.fromkeys(("status", "attempts", "resumed"), _small),
    **dict.fromkeys(("stream", "estimated"), bool),
    **dict.fromkeys(("ended", "ttft_s", "duration_s", "queue_wait_s", "slot_s"), _seconds),
}
