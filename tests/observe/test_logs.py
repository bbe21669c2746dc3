"""Lines on standard output."""

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.core.call import Endpoint
from corral.core.lifecycle import State, Transition
from corral.core.principal import Priority
from corral.core.record import Outcome, Record
from corral.core.usage import Usage
from corral.observe.logs import configure, lost_lines, write_record, write_transition

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access")

log = logging.getLogger("corral.test")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """``configure`` changes what the whole process shares; this puts it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in LOGGERS}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name, (own, propagate) in before.items():
        logging.getLogger(name).handlers[:] = own
        logging.getLogger(name).propagate = propagate


class Output(io.TextIOWrapper):
    """Standard output that remembers; ``error`` is raised by every write from then on."""

    class Bytes(io.BytesIO):
        error: BaseException | None = None

        def write(self, data: Any) -> int:
            if self.error is not None:
                raise self.error
            return super().write(data)

    def __init__(self) -> None:
        self.bytes = self.Bytes()
        super().__init__(self.bytes)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.bytes.getvalue().splitlines()]


def configured(level: str = "info") -> Output:
    output = Output()
    configure(level, output)
    return output


def exchange(**changes: Any) -> Record:
    given: dict[str, Any] = {
        "request_id": "req_1",
        "endpoint": Endpoint.CHAT,
        "opened_at": 100.0,
        "opened_unix_s": 1_700_000_000.25,
        "client": "team_a",
        "model": "llama",
        "replica": "llama-0",
        "stream": True,
        "status": 200,
        "outcome": Outcome.OK,
        "attempts": 1,
        "queued_at": 100.0,
        "leased_at": 100.0125,
        "first_byte_at": 100.5,
        "closed_at": 102.0,
        "bytes_in": 212,
        "bytes_out": 4096,
        "usage": Usage(30, 10, 21),
    }
    return Record(**(given | changes))


def test_an_exchange_is_one_line_with_everything_about_it() -> None:
    output = configured()
    write_record(exchange(priority=Priority.BATCH, route_reason="cached", foreseen_tokens=8))
    assert output.lines() == [
        {
            "ts": "2023-11-14T22:13:22.250Z",
            "level": "info",
            "event": "exchange",
            "request_id": "req_1",
            "client": "team_a",
            "priority": "batch",
            "route": "chat",
            "model": "llama",
            "replica": "llama-0",
            "route_reason": "cached",
            "stream": True,
            "status": 200,
            "outcome": "ok",
            "error_code": None,
            "attempts": 1,
            "resumed": 0,
            "prompt_tokens": 30,
            "cached_tokens": 10,
            "foreseen_tokens": 8,
            "completion_tokens": 21,
            "estimated": False,
            "queue_wait_ms": 12.5,
            "ttft_ms": 500.0,
            "duration_ms": 2000.0,
            "bytes_in": 212,
            "bytes_out": 4096,
        }
    ]


def test_phases_that_were_not_reached_are_null() -> None:
    output = configured()
    early = {"client": "", "model": "", "replica": "", "queued_at": None, "leased_at": None, "first_byte_at": None}
    write_record(exchange(**early, status=401, outcome=Outcome.REFUSED, error_code="invalid_api_key", attempts=0))
    [line] = output.lines()
    absent = {name for name, value in line.items() if value is None}
    assert absent == {"client", "model", "replica", "route_reason", "foreseen_tokens", "queue_wait_ms", "ttft_ms"}
    assert (line["status"], line["outcome"], line["error_code"]) == (401, "refused", "invalid_api_key")


@pytest.mark.parametrize(("level", "count"), [("debug", 1), ("info", 1), ("warning", 0), ("error", 0)])
def test_exchanges_are_told_at_level_info(level: str, count: int) -> None:
    output = configured(level)
    write_record(exchange())
    assert len(output.lines()) == count


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_a_transition_is_a_warning_where_somebody_may_have_to_act(state: State) -> None:
    output = configured()
    write_transition(Transition("llama-0", "llama", State.UNKNOWN, state, "line 1\nline 2", 1.7e9))
    [line] = output.lines()
    expected = {
        "level": "warning" if state in {State.FAILED, State.UNREACHABLE, State.BACKOFF} else "info",
        "event": "replica changed state",
        "model": "llama",
        "replica": "llama-0",
        "old": "unknown",
        "new": state.value,
        "why": "line 1\nline 2",
    }
    assert expected.items() <= line.items()


def test_an_event_carries_its_fields_and_cannot_overwrite_what_every_line_has() -> None:
    output = configured()
    log.info("reloaded", extra={"fields": {"models": 2, "event": "forged", "level": "debug"}})
    [line] = output.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {"level": "info", "event": "reloaded", "logger": "corral.test", "models": 2}


def test_events_below_the_level_are_not_written() -> None:
    output = configured("warning")
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in output.lines()] == ["loud"]


@pytest.mark.parametrize(
    "value", ["line\nbreak", '"}{"', "\x00\x1b[31m", "\u2028", "\ud800", 2**80, {1, 2}, b"\xff", object()]
)
def test_no_value_breaks_out_of_its_line_or_loses_it(value: object) -> None:
    output = configured()
    log.info("odd", extra={"fields": {"value": value}})
    assert len(output.lines()) == 1
    assert output.bytes.getvalue().count(b"\n") == 1


def test_a_message_that_does_not_fit_its_arguments_fails_nobody() -> None:
    output = configured()
    log.info("%d of %d", "three")
    assert [line["event"] for line in output.lines()] == ["%d of %d"]


def test_only_the_first_line_of_a_librarys_message_is_told() -> None:
    output = configured()
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task ... 'canary-prompt'>")
    [line] = output.lines()
    assert (line["event"], line["logger"]) == ("Task exception was never retrieved", "asyncio")


def test_an_exception_is_one_field_without_what_it_quotes() -> None:
    output = configured()
    try:
        int("canary-prompt")
    except ValueError:
        log.exception("failed")
    [line] = output.lines()
    assert (line["level"], line["event"], line["exception"]["type"]) == ("error", "failed", "ValueError")
    assert "test_logs.py" in line["exception"]["stack"][-1]
    assert b"canary-prompt'" not in output.bytes.getvalue()


def test_uvicorn_speaks_through_the_same_lines_only_and_its_access_log_is_silent() -> None:
    elsewhere = io.StringIO()
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).addHandler(logging.StreamHandler(elsewhere))
        logging.getLogger(name).propagate = False
    output = configured()
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("uvicorn.access").info('%s - "%s"', "127.0.0.1", "GET /?key=canary HTTP/1.1")
    [line] = output.lines()
    assert (line["logger"], line["event"]) == ("uvicorn.error", "Started server process [7]")
    assert elsewhere.getvalue() == ""


def test_warnings_become_lines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        output = configured()
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    [line] = output.lines()
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: old way" in line["event"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "disk full"), BlockingIOError(), ValueError("closed")], ids=repr
)
def test_a_stream_that_fails_for_a_while_loses_lines_and_fails_nobody(error: BaseException) -> None:
    output, before = configured(), lost()
    output.bytes.error = error
    write_record(exchange())
    log.warning("lost too")
    output.bytes.error = None
    write_record(exchange(request_id="req_2"))
    assert lost() == before + 2
    assert [line["request_id"] for line in output.lines()] == ["req_2"]


def lost() -> float:
    [reading] = lost_lines()
    return reading.value


CLOSED_PIPE = """
import sys
from corral.core.call import Endpoint
from corral.core.record import Record
from corral.observe.logs import configure, lost_lines, write_record

configure("info")
record = Record("req_1", Endpoint.CHAT, 0.0, 0.0, closed_at=1.0)
for _ in range(3):
    write_record(record)
print("printed later")
print([reading.value for reading in lost_lines()], file=sys.stderr)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_nobody_reads_stops_neither_requests_nor_the_exit(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", CLOSED_PIPE],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr.strip()) == (0, "[3]")


def test_every_field_of_a_line_is_documented() -> None:
    output = configured()
    write_record(exchange())
    write_transition(Transition("llama-0", "llama", State.LOADING, State.READY, "", 1.7e9))
    try:
        raise ExceptionGroup("several", [ValueError()]) from OSError("cause")
    except ExceptionGroup:
        log.exception("failed")
    lines = output.lines()
    fields = {name for line in lines for name in line} | set(lines[-1]["exception"]) | {"message"}
    _, text = DOCS.read_text().split("## Logs")
    rows = "\n".join(re.findall(r"^\| (.*) \|$", text, re.MULTILINE))
    assert fields - set(re.findall(r"`(\w+)`", rows)) == set()
