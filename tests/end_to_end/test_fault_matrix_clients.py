"""The fault matrix, clients: they leave in every phase, in whole or in half, stop reading, and send ahead."""

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.door import Door
from support.front import Narrow
from support.matrix import Expected, Tally, ensure_closed, ensure_recorded, now, said_to
from support.raw_client import RawClient, Reply
from support.talk import CHAT, DONE, MODES, begin, chat, new_id, record_of, text_of

# Goes on until somebody ends it.
LONG = 'script:{"count": 100000}'
PACE = {"token_s": 0.02}
# More than the buffers of four sockets hold, in events of this size.
HUGE_BYTES, HUGE_EVENTS = 2_000_000, 40
ALL = tuple(MODES)
STREAMED = ("stream", "gathered")


@dataclass(frozen=True)
class Phase:
    """How far a request is when its client leaves; ``reached`` waits for it."""

    reached: Callable[[Narrow, RawClient], None]
    modes: tuple[str, ...] = ALL
    content: str = "hello"
    # Of the fake.
    settings: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[dict[str, Any], ...] = ()
    # The slot is somebody else's.
    occupied: bool = False
    attempts: int = 1
    # Requests that reach the fake.
    asked: int = 1
    # The record tells of tokens; None: it may or may not.
    tokens: bool | None = False


def queued(narrow: Narrow, _: RawClient) -> None:
    narrow.until_waiting(1)


def busy(narrow: Narrow, _: RawClient) -> None:
    narrow.gateway.until(lambda: narrow.gateway.metric("corral_slots_busy") == 1, "at a replica")


def processed(narrow: Narrow, _: RawClient) -> None:
    narrow.fake.until(lambda state: bool(state["processing"] == 1))


def token_received(_: Narrow, client: RawClient) -> None:
    client.receive(until=b'"content"')


def middle_received(_: Narrow, client: RawClient) -> None:
    reply = Reply()
    while reply.raw.count(b'"content"') < 10:
        reply.parts += client.receive(until=b"\n").parts


def written(count: int) -> Callable[[Narrow, RawClient], None]:
    """The fake has written so much of its reply."""

    def reached(narrow: Narrow, _: RawClient) -> None:
        narrow.gateway.until(lambda: any(each["writes"] >= count for each in narrow.fake.requests(CHAT)), "written")

    return reached


def pausing(narrow: Narrow, _: RawClient) -> None:
    """An attempt has failed, and its slot been given back."""
    narrow.gateway.until(lambda: narrow.fake.requests(CHAT), "tried")
    narrow.gateway.until(lambda: narrow.gateway.metric("corral_slots_busy") == 0, "in a pause")


PHASES: dict[str, Phase] = {
    "in the queue": Phase(queued, occupied=True, attempts=0, asked=0),
    "while connecting": Phase(
        busy, faults=({"kind": "reset_on_reuse", "path": "*"}, {"kind": "connect_hang"}), asked=0
    ),
    # The prompt is read in small steps, as Corral's own llama-servers do.
    "before headers": Phase(
        processed, STREAMED, content=" ".join(["word"] * 1000), settings={"prefill_s": 60, "n_batch": 1}
    ),
    # llama-server does not notice; its slot counts until it is done.
    "before headers, whole": Phase(processed, ("whole",), settings={"token_s": 0.1}),
    "at the first token": Phase(token_received, ("stream",), content=LONG, settings=PACE, tokens=True),
    "mid-stream": Phase(middle_received, ("stream",), content=LONG, settings=PACE, tokens=True),
    "while gathering": Phase(written(10), ("gathered",), content=LONG, settings=PACE, tokens=True),
    "at the first token, gathered": Phase(written(2), ("gathered",), content=LONG, settings=PACE, tokens=None),
    "during back-off": Phase(pausing, faults=({"kind": "status", "status": 503, "retry_after": "25"},)),
}
# A client that has shut its side counts as gone.
WAYS: dict[str, Callable[[RawClient], None]] = {
    "leaves": RawClient.close,
    "half-closes": lambda client: client.socket.shutdown(socket.SHUT_WR),
}
CELLS = [(way, name, mode) for way in WAYS for name, phase in PHASES.items() for mode in phase.modes]


def gone(attempts: int) -> Expected:
    return Expected(None, 499, "client_gone", attempts=(attempts,), estimated=None)


def struck(narrow: Narrow) -> list[dict[str, Any]]:
    """The requests that the fake got, without those over connections that it has just shut."""
    return [request for request in narrow.fake.requests(CHAT) if "reset_on_reuse" not in request["faults"]]


@pytest.mark.parametrize(("way", "name", "mode"), CELLS)
def test_a_client_that_goes(narrow: Narrow, way: str, name: str, mode: str, cell: Callable[[str, str], None]) -> None:
    cell(f"client {way}: {name.removesuffix(', whole').removesuffix(', gathered')}", mode)
    phase, gateway, request_id = PHASES[name], narrow.gateway, new_id()
    with ExitStack() as stack:
        if phase.occupied:
            stack.enter_context(narrow.occupied())
        tally, transitions = Tally(gateway), gateway.metric("corral_replica_transitions_total")
        narrow.fake.set(**phase.settings)
        for fault in phase.faults:
            narrow.fake.fault(**fault)
        before = len(struck(narrow))
        fields = MODES[mode] if phase.content != LONG else MODES[mode] | {"max_tokens": 100_000}
        client = stack.enter_context(
            begin(gateway, CHAT, chat(phase.content, **fields), **{"x-request-id": request_id})
        )
        phase.reached(narrow, client)
        WAYS[way](client)
        left_at = now()
        record = ensure_recorded(gateway, request_id, gone(phase.attempts))
        assert phase.tokens is None or (record["completion_tokens"] > 0) is phase.tokens
        assert not phase.tokens or record["estimated"]
        assert phase.tokens is not False or record["ttft_ms"] is None
        assert len(struck(narrow)) == before + phase.asked
        if phase.occupied:
            narrow.until_waiting(0)
            tally.ensure_added(gone(0), phase.attempts)
        elif phase.asked:
            ensure_closed([narrow.fake], CHAT, left_at)
        # Nobody is blamed for it.
        if not phase.faults:
            assert gateway.metric("corral_replica_transitions_total") == transitions


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_goes_while_it_sends_its_body(
    narrow: Narrow, way: str, mode: str, cell: Callable[[str, str], None]
) -> None:
    cell(f"client {way}: while sending the body", mode)
    gateway, request_id = narrow.gateway, new_id()
    body = json.dumps(chat(**MODES[mode])).encode()
    with RawClient(gateway.port) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer local\r\nX-Request-Id: {request_id}\r\n"
        client.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
        gateway.until(lambda: gateway.metric("corral_exchanges_in_flight") == 1, "in flight")
        WAYS[way](client)
        ensure_recorded(gateway, request_id, gone(0))
    assert narrow.fake.requests(CHAT) == []


# -- reading ---------------------------------------------------------------------


def stuff(narrow: Narrow, events: int) -> None:
    """The next reply has so many huge events, behind its first tokens."""
    for after in range(5, 5 + events):
        narrow.fake.fault("huge", after=after, size=HUGE_BYTES)


def test_a_client_that_reads_slowly_gets_everything(narrow: Narrow, cell: Callable[[str, str], None]) -> None:
    cell("client reads slowly", "stream")
    gateway, request_id = narrow.gateway, new_id()
    stuff(narrow, HUGE_EVENTS)
    body, reply = chat(**MODES["stream"]), Reply()
    with begin(gateway, CHAT, body, **{"x-request-id": request_id}) as client:
        while part := client.socket.recv(1 << 16):
            reply.parts.append(part)
    assert reply.events[-1] == DONE
    assert text_of(reply).count("x" * HUGE_BYTES) == HUGE_EVENTS
    assert text_of(reply).replace("x" * HUGE_BYTES, "") == said_to(CHAT, body)
    assert record_of(gateway, request_id)["outcome"] == "ok"


def test_a_client_that_stops_reading_is_cut_off(narrow: Narrow, cell: Callable[[str, str], None]) -> None:
    cell("client stops reading", "stream")
    gateway, request_id = narrow.gateway, new_id()
    stuff(narrow, HUGE_EVENTS)
    with begin(gateway, CHAT, chat(LONG, max_tokens=100_000, stream=True), **{"x-request-id": request_id}):
        record = ensure_recorded(gateway, request_id, gone(1))
    assert record["bytes_out"] < HUGE_EVENTS * HUGE_BYTES / 2
    assert [request["ended"] for request in narrow.fake.until_ended(CHAT)] == ["client_gone"]


@pytest.mark.parametrize("mode", STREAMED)
def test_a_client_that_stops_reading_when_the_upstream_is_done_has_not_been_served(
    narrow: Narrow, door: Door, mode: str, cell: Callable[[str, str], None]
) -> None:
    if door is Door.APP and mode == "gathered":
        pytest.skip("an ASGI server takes a whole answer at once, and tells of nobody who does not read it")
    cell("client stops reading, upstream done", mode)
    gateway, request_id = narrow.gateway, new_id()
    # The buffers of the last socket do not hold it, those of Corral do.
    narrow.fake.fault("huge", after=5, size=12_000_000)
    with begin(gateway, CHAT, chat(**MODES[mode]), **{"x-request-id": request_id}):
        narrow.fake.until(lambda _: bool(narrow.fake.requests(CHAT)))
        narrow.fake.until_ended(CHAT)
        ensure_recorded(gateway, request_id, gone(1))
    assert len(narrow.fake.requests(CHAT)) == 1


# -- sending ahead ---------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_pipelines_gets_its_answers_in_order(
    narrow: Narrow, mode: str, cell: Callable[[str, str], None]
) -> None:
    cell("client pipelines", mode)
    gateway, ids = narrow.gateway, [new_id(), new_id()]
    first, second = chat("first", **MODES[mode]), chat("second", max_tokens=8)
    with RawClient(gateway.port) as client:
        client.send("POST", CHAT, first, Authorization="Bearer local", X_Request_Id=ids[0])
        client.send("POST", CHAT, second, Authorization="Bearer local", X_Request_Id=ids[1], Connection="close")
        answers = client.receive().raw.split(b"HTTP/1.1 200 OK\r\n")[1:]
    replies = [Reply([b"HTTP/1.1 200 OK\r\n", answer]) for answer in answers]
    assert [reply.headers["x-request-id"] for reply in replies] == ids
    assert [text_of(reply) for reply in replies] == [said_to(CHAT, first), said_to(CHAT, second)]
    assert [record_of(gateway, each)["outcome"] for each in ids] == ["ok", "ok"]


@pytest.mark.parametrize("mode", STREAMED)
def test_a_client_that_pipelines_and_leaves_has_left(
    narrow: Narrow, door: Door, mode: str, cell: Callable[[str, str], None]
) -> None:
    if door is Door.APP:
        pytest.skip("an ASGI server does not read on while it answers, and tells of nobody's leaving")
    cell("client pipelines and leaves", mode)
    gateway, ids = narrow.gateway, [new_id(), new_id()]
    narrow.fake.set(**PACE)
    with RawClient(gateway.port) as client:
        for request_id in ids:
            body = chat(LONG, **MODES[mode] | {"max_tokens": 100_000})
            client.send("POST", CHAT, body, Authorization="Bearer local", X_Request_Id=request_id)
        processed(narrow, client)
    left_at = now()
    ensure_recorded(gateway, ids[0], gone(1))
    # Nobody waits for the second, which was never begun.
    assert len(narrow.fake.until_ended(CHAT)) == 1
    ensure_closed([narrow.fake], CHAT, left_at)
    gateway.until_idle()
    assert ids[1] not in [record["request_id"] for record in gateway.records()]
