"""JSON lines on standard output: one for each exchange that ended, one for each event.

Any part tells an event through the standard library, as a short constant
message with fields: ``log.info("replica ready", extra={"fields": {...}})``.
Exchanges do not take that road: it takes nearly three times as long (measured).
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any, TextIO

import orjson

from corral.core.lifecycle import State, Transition
from corral.core.record import Record
from corral.observe.failure import describe
from corral.observe.readings import Instrument, Reading

_exchanges = logging.getLogger("corral.exchange")
_transitions = logging.getLogger("corral.replica")

# States that somebody may have to do something about.
_WARNING_STATES = frozenset({State.FAILED, State.UNREACHABLE, State.BACKOFF})

# uvicorn gives these handlers and levels of their own.
_UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")


class Lines:
    """Writes lines to a stream, each in one piece; what cannot be written is counted and lost.

    One writer: ``configure`` sets the stream. A log never fails a request, so
    ``write`` does not raise what a stream can.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._stream: TextIO | None = None

    def open(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        if self._stream is None:
            self.lost += 1
            return
        try:
            self._stream.buffer.write(line)
            self._stream.buffer.flush()
        except BrokenPipeError:
            self._give_up(self._stream)
        except (OSError, ValueError):
            # A full disk, a full pipe that does not block, or a closed file.
            self.lost += 1

    def _give_up(self, stream: TextIO) -> None:
        """Nobody will ever read again. The null device takes what is buffered, else the interpreter's exit fails."""
        self.lost += 1
        self._stream = None
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


_lines = Lines()


class LineHandler(logging.Handler):
    """Turns the standard library's log records into our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        _lines.write(_encode(_event(record)))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send every log of this process, warnings and uvicorn's included, as JSON lines to ``stream`` (standard output).

    uvicorn has to be given ``log_config=None``. Its access log stays silent:
    the exchange's line says more.
    """
    _lines.open(stream or sys.stdout)
    root = logging.getLogger()
    root.handlers[:] = [LineHandler()]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in _UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"


def write_record(record: Record) -> None:
    """Write the line of an exchange that has been closed; its level is INFO."""
    if _exchanges.isEnabledFor(logging.INFO):
        _lines.write(_encode(_exchange(record)))


def write_transition(transition: Transition) -> None:
    """Write a replica's change of state: a warning where somebody may have to act."""
    _transitions.log(
        logging.WARNING if transition.new in _WARNING_STATES else logging.INFO,
        "replica changed state",
        extra={
            "fields": {
                "model": transition.model,
                "replica": transition.replica,
                "old": transition.old.value,
                "new": transition.new.value,
                "why": transition.why,
            }
        },
    )


def lost_lines() -> Iterator[Reading]:
    """For the metrics: how many lines could not be written."""
    yield Reading(Instrument.LOG_LINES_LOST, _lines.lost)


def _exchange(record: Record) -> dict[str, Any]:
    usage = record.usage
    duration_s = record.duration_s
    return {
        # By the loop's clock, so that a step of the wall clock does not put the end before the start.
        "ts": _timestamp(record.opened_unix_s + duration_s),
        "level": "info",
        "event": "exchange",
        "request_id": record.request_id,
        "client": record.client or None,
        "priority": record.priority.label,
        "route": record.endpoint.label,
        "model": record.model or None,
        "replica": record.replica or None,
        "route_reason": record.route_reason or None,
        "stream": record.stream,
        "status": record.status,
        "outcome": record.outcome.label,
        "error_code": record.error_code,
        "attempts": record.attempts,
        "resumed": len(record.resumed),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "foreseen_tokens": record.foreseen_tokens,
        "completion_tokens": usage.completion_tokens,
        "estimated": usage.estimated,
        "queue_wait_ms": _ms(record.queue_wait_s),
        "ttft_ms": _ms(record.ttft_s),
        "duration_ms": round(duration_s * 1000, 1),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }


def _event(record: logging.LogRecord) -> dict[str, Any]:
    line: dict[str, Any] = {
        "ts": _timestamp(record.created),
        "level": record.levelname.lower(),
        "event": _message(record),
        "logger": record.name,
    }
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):
        for name, value in fields.items():
            line.setdefault(name, value)
    if record.exc_info and record.exc_info[1] is not None:
        line["exception"] = describe(record.exc_info[1])
    return line


def _message(record: logging.LogRecord) -> str:
    """The first line of the message: what libraries add below can show what they were working on."""
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        # Placeholders and arguments do not fit; a log never fails its caller.
        message = str(record.msg)
    return message.strip().partition("\n")[0]


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        # Half of a surrogate pair, or a whole number beyond 64 bits.
        return json.dumps(line, default=_text).encode() + b"\n"


def _text(value: object) -> str:
    """As orjson has it: an Enum's member is its value."""
    return str(value.value if isinstance(value, Enum) else value)


def _timestamp(unix_s: float) -> str:
    return f"{_second(int(unix_s))}.{int(unix_s % 1 * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
