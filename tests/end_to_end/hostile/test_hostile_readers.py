"""Clients that read slowly, or not at all: memory stays bounded, and only who takes nothing is cut."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.web.protocol import LINGER_S
from support.door import Door
from support.edge import Edge
from support.fake import FakeLlama
from support.gateway import Gateway
from support.leftovers import Leftovers
from support.raw_client import RawClient, Reply
from support.spelled import HOST, NarrowClient, answers_of, asked, spelled
from support.talk import CHAT, new_id, record_of

MB = 1_000_000
# Goes on until somebody ends it.
LONG = 'script:{"count": 100000}'
CLOSE = "Connection: close"


@pytest.fixture
def calm(tmp_path: Path) -> Iterator[Edge]:
    """A gateway that waits long for clients, and a second for tokens."""
    with FakeLlama() as fake:
        settings = {"MODEL_UPSTREAMS": f"one={fake.url}", "CORRAL_TIMEOUTS_CHAT_BETWEEN_TOKENS": "1s"}
        with Gateway(tmp_path, door=Door.LANE, check_idle=True, **settings) as gateway:
            gateway.until_ready()
            yield Edge(gateway, fake, Leftovers(gateway, [fake]))


def stuff(fake: FakeLlama, count: int, size: int) -> None:
    """Make so many events of a stream so large."""
    for after in range(5, 5 + count):
        fake.fault("huge", after=after, size=size)


def writes(edge: Edge) -> int:
    """How many pieces of its reply the upstream has got rid of."""
    told: int = edge.fake.requests(CHAT)[0]["writes"]
    return told


def until_still(edge: Edge) -> int:
    """Wait until the upstream gets rid of nothing more."""
    seen = [-2, -1]

    def still() -> bool:
        time.sleep(0.2)
        seen.append(writes(edge) if edge.fake.requests(CHAT) else -len(seen))
        return seen[-1] == seen[-2]

    edge.gateway.until(still, "still")
    return seen[-1]


def ensure_gone(edge: Edge, request_id: str) -> dict[str, Any]:
    record = record_of(edge.gateway, request_id)
    assert record["outcome"] == "client_gone"
    assert record["error_code"] is None
    return record


# -- slowly ----------------------------------------------------------------------


def test_a_client_that_pauses_pauses_its_upstream_and_gets_everything(calm: Edge) -> None:
    events, request_id = 60, new_id()
    stuff(calm.fake, events, 2 * MB)
    with RawClient(calm.port) as client:
        client.socket.sendall(asked("hello", CLOSE, f"X-Request-Id: {request_id}", stream=True, max_tokens=80))
        before = calm.gateway.metric("process_resident_memory_bytes")
        written = until_still(calm)
        # Longer than there may be between two tokens.
        time.sleep(1.5)
        assert writes(calm) == written < events
        assert calm.gateway.metric("process_resident_memory_bytes") < before + 8 * MB
        reply = client.receive()
    assert calm.gateway.metric("process_resident_memory_bytes") < before + 16 * MB
    assert reply.raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    # What the model says besides has some too.
    assert events * 2 * MB <= reply.raw.count(b"x") < events * 2 * MB + 1000
    assert record_of(calm.gateway, request_id)["outcome"] == "ok"


def test_who_reads_a_large_answer_slowly_gets_it_whole(edge: Edge) -> None:
    """It takes three times as long as a client may take nothing."""
    edge.fake.fault("huge", after=5, size=3 * MB)
    reply = Reply()
    with NarrowClient(edge.port) as client:
        client.socket.sendall(asked("hello", CLOSE, max_tokens=30))
        while part := client.socket.recv(50_000):
            reply.parts.append(part)
            time.sleep(len(part) / MB)
    (answer,) = answers_of(reply)
    assert (answer.status, answer.whole) == (200, True)
    assert len(answer.body) > 3 * MB
    edge.gateway.until_idle()
    assert edge.gateway.records()[-1]["outcome"] == "ok"


def test_a_connection_that_is_to_end_does_not_do_so_while_its_answer_is_being_read(calm: Edge) -> None:
    """The kernel has not taken all of the answer, and what Corral holds is too little to pause for."""
    request_id = new_id()
    calm.fake.fault("huge", after=5, size=230_000)
    with NarrowClient(calm.port) as client:
        client.socket.sendall(asked("hello", f"X-Request-Id: {request_id}", max_tokens=30) + b"garbage\r\n\r\n")
        assert record_of(calm.gateway, request_id)["outcome"] == "ok"
        # Longer than it would wait for a client to stop sending.
        time.sleep(LINGER_S + 1)
        (answer,) = answers_of(client.receive())
    assert answer.whole


# -- not at all ------------------------------------------------------------------


def test_who_stops_reading_a_stream_is_cut_and_holds_little_until_then(edge: Edge) -> None:
    request_id = new_id()
    stuff(edge.fake, 60, 50_000)
    with NarrowClient(edge.port) as client:
        client.socket.sendall(asked(LONG, f"X-Request-Id: {request_id}", stream=True, max_tokens=100_000))
        record = ensure_gone(edge, request_id)
    # What the kernel and Corral had taken for the client; the kernel alone would take four megabytes.
    assert record["bytes_out"] < 700_000
    assert [request["ended"] for request in edge.fake.until_ended(CHAT)] == ["client_gone"]


@pytest.mark.parametrize("stream", [False, True])
def test_who_stops_reading_when_the_upstream_is_done_has_not_been_served(edge: Edge, stream: bool) -> None:
    request_id = new_id()
    edge.fake.fault("huge", after=5, size=5 * MB)
    with NarrowClient(edge.port) as client:
        client.socket.sendall(asked("hello", f"X-Request-Id: {request_id}", stream=stream, max_tokens=30))
        edge.gateway.until(lambda: edge.fake.requests(CHAT), "asked")
        assert [request["ended"] for request in edge.fake.until_ended(CHAT)] == ["complete"]
        ensure_gone(edge, request_id)


def test_who_does_not_read_what_the_app_answers_is_cut_too(edge: Edge) -> None:
    ask = spelled("GET /openapi.json HTTP/1.1", HOST)
    with NarrowClient(edge.port) as client:
        client.socket.sendall(ask * 50)
        edge.gateway.until(lambda: not connected(edge, client), "cut")


def connected(edge: Edge, client: RawClient) -> bool:
    """The gateway has not closed this connection."""
    port: int = client.socket.getsockname()[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {(int(row[1].partition(":")[2], 16), int(row[2].partition(":")[2], 16)) for row in rows if row[9] != "0"}
    return (edge.port, port) in ends
