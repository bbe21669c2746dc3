"""A load test sends real requests to a live server, and tells what came of them."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from corral.core.call import Endpoint
from corral.core.errors import ConfigError
from corral.load import Plan, run_load
from support.serve import Handler, serving

ROLE = {"choices": [{"delta": {"role": "assistant", "content": None}}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
STREAM_HEADERS = {"Content-Type": "text/event-stream"}


def content(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def events(*chunks: dict[str, Any], done: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[tuple[str, str | None, Any]]]]:
    """A server that gives one answer to all, and what it was asked: path, authorization, JSON."""
    asked: list[tuple[str, str | None, Any]] = []

    class Fixed(Handler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"], json.loads(self.body())))
            self.answer(status, body, STREAM_HEADERS)

    with serving(Fixed) as url:
        yield url, asked


def measure(plan: Plan) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a run."""
    console = Console(width=200)
    with console.capture() as capture:
        code = run_load(plan, console, as_json=True)
    report: dict[str, Any] = json.loads(capture.get())
    return code, report


def test_a_streaming_run_counts_tokens_by_usage_and_measures_all_latencies() -> None:
    with answering(200, events(ROLE, content("a"), content("b"), USAGE)) as (url, asked):
        code, report = measure(Plan(url=url, requests=5, concurrency=2, api_key="secret", model="m", max_tokens=9))

    assert code == 0
    assert (report["done"], report["failed"], report["statuses"], report["errors"]) == (5, 0, {"200": 5}, [])
    assert (report["prompt_tokens"], report["completion_tokens"]) == (35, 15)
    latency = report["latency_s"]
    assert 0 < latency["ttft"]["p50"] <= latency["total"]["p50"]
    assert latency["inter_token"]["p50"] >= 0
    path, authorization, body = asked[0]
    assert (len(asked), path, authorization) == (5, "/v1/chat/completions", "Bearer secret")
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 9, True)


def test_an_event_without_content_is_not_the_first_token() -> None:
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    with answering(200, events(ROLE, end, USAGE)) as (url, _):
        code, report = measure(Plan(url=url, requests=1))

    assert code == 0
    assert report["latency_s"]["ttft"] is None


@pytest.mark.parametrize(
    ("endpoint", "chunk"),
    [
        (Endpoint.CHAT, {"choices": [{"delta": {"reasoning_content": "hm"}}]}),
        (Endpoint.CHAT, {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}),
        (Endpoint.COMPLETIONS, {"choices": [{"text": "a"}]}),
    ],
)
def test_everything_generated_is_a_token(endpoint: Endpoint, chunk: dict[str, Any]) -> None:
    with answering(200, events(chunk, USAGE)) as (url, asked):
        _, report = measure(Plan(url=url, requests=1, endpoint=endpoint))

    assert report["latency_s"]["ttft"] is not None
    assert asked[0][0] == endpoint.path


def test_a_whole_reply_has_a_total_and_no_time_to_first_token() -> None:
    with answering(200, json.dumps(USAGE).encode()) as (url, asked):
        code, report = measure(Plan(url=url, requests=2, stream=False))

    assert code == 0
    assert report["latency_s"]["ttft"] is None
    assert report["latency_s"]["total"]["p99"] > 0
    assert report["completion_tokens"] == 6
    assert "stream" not in asked[0][2]


def test_embeddings_count_the_tokens_read_and_never_stream() -> None:
    with answering(200, json.dumps({"data": [], "usage": {"prompt_tokens": 4}}).encode()) as (url, asked):
        code, report = measure(Plan(url=url, requests=3, endpoint=Endpoint.EMBEDDINGS, prompt="hi"))

    assert code == 0
    assert report["tokens_per_s"] == pytest.approx(12 / report["elapsed_s"])
    assert asked[0][::2] == ("/v1/embeddings", {"model": "llama", "input": "hi"})
    assert report["stream"] is False


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (429, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}', "rate_limit_exceeded"),
        (400, b'{"error": {"message": "no", "code": null, "type": "invalid_request_error"}}', "invalid_request_error"),
        (500, b'{"error": "oh"}', "failed"),
        (502, b"<html>Bad gateway</html>", "bad_reply"),
        (
            200,
            events(content("a"), {"error": {"code": "upstream_connection_lost"}}, done=False),
            "upstream_connection_lost",
        ),
        (200, events(content("a"), done=False), "stream_cut"),
        (200, b"data: not json\n\n", "bad_reply"),
    ],
)
def test_a_failure_is_told_by_status_and_code(status: int, body: bytes, error: str) -> None:
    with answering(status, body) as (url, _):
        code, report = measure(Plan(url=url, requests=2))

    assert code == 1
    assert report["errors"] == [{"status": status, "code": error, "count": 2}]
    assert report["latency_s"]["total"] is None


def test_nobody_listening_is_told_and_not_raised() -> None:
    with answering(200, b"") as (url, _):
        pass
    code, report = measure(Plan(url=url, requests=2))

    assert code == 1
    assert report["errors"] == [{"status": 0, "code": "connection_refused", "count": 2}]


def test_a_request_that_takes_too_long_is_given_up() -> None:
    stop = threading.Event()

    class Silent(Handler):
        def do_POST(self) -> None:
            stop.wait(30)

    with serving(Silent) as url:
        code, report = measure(Plan(url=url, requests=1, timeout_s=0.05))
        stop.set()

    assert code == 1
    assert report["errors"] == [{"status": 0, "code": "timeout", "count": 1}]


def test_exactly_as_many_requests_as_asked_for_are_under_way() -> None:
    # Nobody is answered until three are there; a fourth at the same time would be counted.
    barrier = threading.Barrier(3)
    under_way = 0
    most = 0
    lock = threading.Lock()

    class Counting(Handler):
        def do_POST(self) -> None:
            nonlocal under_way, most
            self.body()
            with lock:
                under_way += 1
                most = max(most, under_way)
            barrier.wait(30)
            with lock:
                under_way -= 1
            self.answer(200, events(content("a"), USAGE), STREAM_HEADERS)

    with serving(Counting) as url:
        code, report = measure(Plan(url=url, requests=9, concurrency=3))

    assert (code, report["done"], most) == (0, 9, 3)


def test_the_table_is_printed_unless_json_is_asked_for() -> None:
    console = Console(width=100)
    with answering(200, events(content("a"), USAGE)) as (url, _), console.capture() as capture:
        code = run_load(Plan(url=url, requests=2), console)

    assert code == 0
    assert "2 requests (chat, streaming, 8 at a time)" in capture.get()


RUN = """
import sys
from rich.console import Console
from corral.load import Plan, run_load
sys.exit(run_load(Plan(url=sys.argv[1], requests=10, concurrency=1), Console(), as_json=True))
"""


def test_ctrl_c_prints_what_was_measured_so_far() -> None:
    answered = 0
    hanging = threading.Event()
    stop = threading.Event()

    class HangsAtTheFourth(Handler):
        def do_POST(self) -> None:
            nonlocal answered
            if answered == 3:
                hanging.set()
                stop.wait(60)
                return
            answered += 1
            self.body()
            self.answer(200, events(content("a"), USAGE), STREAM_HEADERS)

    with serving(HangsAtTheFourth) as url:
        command = [sys.executable, "-c", RUN, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert hanging.wait(60)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=60)
        stop.set()

    report = json.loads(printed)
    assert process.returncode == 130
    assert (report["done"], report["failed"], report["interrupted"]) == (3, 0, True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"requests": 0}, "--requests"),
        ({"concurrency": -1}, "--concurrency"),
        ({"max_tokens": 0}, "--max-tokens"),
        ({"timeout_s": 0.0}, "--timeout"),
        ({"url": "127.0.0.1:8000"}, "--url"),
        ({"api_key": "a\r\nb"}, "--api-key"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        run_load(replace(Plan(), **wrong), Console())
