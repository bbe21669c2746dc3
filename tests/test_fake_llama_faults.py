"""Each fault does on the wire what it says: seen on the bare socket."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake.faults import KINDS
from support.fake import FakeLlama
from support.raw_client import RawClient, Reply, ask

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
STREAM = {"messages": MESSAGES, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
WHOLE = {"messages": MESSAGES, "max_tokens": 5}
# Role, five deltas, finish, usage, [DONE].
EVENTS = 9


@pytest.fixture(scope="module")
def running() -> Iterator[FakeLlama]:
    with FakeLlama() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeLlama) -> FakeLlama:
    running.reset()
    return running


def finishes(reply: Reply) -> list[str]:
    choices = [choice for chunk in reply.chunks for choice in chunk.get("choices", ())]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def test_without_a_fault_a_stream_is_whole(fake: FakeLlama) -> None:
    reply = ask(fake.port, CHAT, STREAM)
    assert len(reply.events) == EVENTS
    assert finishes(reply) == ["length"]
    assert (reply.events[-1], reply.end) == ("[DONE]", "fin")
    assert reply.raw.endswith(b"\r\n0\r\n\r\n")


# -- at the door ----------------------------------------------------------------


def test_a_closed_port_refuses_and_opens_again(fake: FakeLlama) -> None:
    fake.fault("refuse")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", fake.port))
    assert fake.state()["door"] == "refusing"
    fake.clear_faults()
    assert ask(fake.port, "/health").status == 200


def test_a_port_may_be_closed_from_the_start_and_for_a_while() -> None:
    with FakeLlama("refuse,seconds=0.3") as fake:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", fake.port))
        fake.until(lambda state: state["door"] == "open")
        assert ask(fake.port, "/health").status == 200


def test_a_connection_that_exists_outlives_a_closed_port(fake: FakeLlama) -> None:
    with RawClient(fake.port) as client:
        client.whole("GET", "/health")
        fake.fault("refuse")
        assert client.whole("GET", "/health").status == 200


def test_connecting_hangs(fake: FakeLlama) -> None:
    fake.fault("connect_hang")
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", fake.port), timeout=0.5)
    fake.clear_faults()
    assert ask(fake.port, "/health").status == 200


# -- in place of a reply --------------------------------------------------------


def test_silence_lasts_until_the_client_leaves(fake: FakeLlama) -> None:
    fake.fault("silence")
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, STREAM)
        reply = client.receive(0.3)
    assert (reply.raw, reply.end) == (b"", "silence")
    (request,) = fake.until_ended(CHAT)
    assert (request["ended"], request["faults"]) == ("fault", ["silence"])
    assert request["left_at"] is not None


def test_silence_with_seconds_only_delays_the_reply(fake: FakeLlama) -> None:
    fake.fault("silence", seconds=0.2)
    assert ask(fake.port, CHAT, WHOLE).status == 200
    (request,) = fake.until_ended(CHAT)
    assert request["ended_at"] - request["received_at"] >= 0.2


def test_headers_then_silence(fake: FakeLlama) -> None:
    fake.fault("head_then_silence")
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, STREAM)
        reply = client.receive(0.3)
    assert reply.status == 200
    assert (reply.body, reply.end) == (b"", "silence")
    fake.until(lambda state: state["running"] == 0)


@pytest.mark.parametrize(("body", "content_type"), [(STREAM, "text/event-stream"), (WHOLE, "application/json")])
@pytest.mark.parametrize("fault", ["head_then_silence", "head_cut"])
def test_a_head_is_that_of_the_reply_that_was_asked_for(
    fake: FakeLlama, fault: str, body: dict[str, object], content_type: str
) -> None:
    fake.fault(fault)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, body)
        reply = client.receive(until=b"Cont")
    assert (b"X-Accel-Buffering" in reply.raw) is (body is STREAM)
    assert fault == "head_cut" or reply.headers["content-type"].startswith(content_type)


@pytest.mark.parametrize("fault", ["silence", "close"])
def test_it_tells_when_a_connection_was_closed_by_whichever_side(fake: FakeLlama, fault: str) -> None:
    assert fake.requests() == []
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, WHOLE)
        fake.until(lambda state: bool(state["requests"]))
        assert fake.requests()[0]["closed_at"] is None
        fake.fault(fault)
        client.send("POST", CHAT, WHOLE)
        fake.until(lambda state: bool(state["requests"] == 2))
        assert (fake.requests()[1]["closed_at"] is None) is (fault == "silence")
    fake.until(lambda _: fake.requests()[1]["closed_at"] is not None)
    assert fake.requests()[1]["closed_at"] <= fake.state()["now"]


def test_loading_strikes_while_the_rest_is_well(fake: FakeLlama) -> None:
    fake.fault("loading")
    assert ask(fake.port, CHAT, WHOLE).json == {
        "error": {"message": "Loading model", "type": "unavailable_error", "code": 503}
    }
    assert ask(fake.port, "/health").status == 200


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", ["json", "text", "html", "empty"])
def test_any_status_with_any_body(fake: FakeLlama, code: int, body: str) -> None:
    fake.fault("status", status=code, body=body, retry_after="7")
    reply = ask(fake.port, CHAT, STREAM)
    assert reply.status == code
    assert reply.headers["retry-after"] == "7"
    if body == "json":
        assert reply.json["error"]["code"] == code
    else:
        wanted = {"text": "text/plain", "html": "text/html", "empty": "application/json; charset=utf-8"}
        assert reply.headers["content-type"] == wanted[body]
        assert (reply.body == b"") is (body == "empty")


def test_headers_are_cut_in_the_middle(fake: FakeLlama) -> None:
    fake.fault("head_cut")
    reply = ask(fake.port, CHAT, STREAM)
    assert reply.raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.raw.endswith(b"\r\nCont")
    assert reply.end == "fin"


@pytest.mark.parametrize(("kind", "end"), [("close", "fin"), ("reset", "rst")])
def test_the_connection_ends_before_any_byte(fake: FakeLlama, kind: str, end: str) -> None:
    fake.fault(kind)
    reply = ask(fake.port, CHAT, STREAM)
    assert (reply.raw, reply.end) == (b"", end)


def test_a_reply_that_is_not_http(fake: FakeLlama) -> None:
    fake.fault("garbage")
    assert not ask(fake.port, CHAT, STREAM).raw.startswith(b"HTTP/")


def test_a_reset_on_reuse_spares_the_first_request_of_a_connection(fake: FakeLlama) -> None:
    fake.fault("reset_on_reuse")
    with RawClient(fake.port) as client:
        assert client.whole("POST", CHAT, WHOLE).status == 200
        client.send("POST", CHAT, WHOLE)
        reply = client.receive()
    assert (reply.raw, reply.end) == (b"", "rst")
    assert ask(fake.port, CHAT, WHOLE).status == 200


# -- in the stream --------------------------------------------------------------


@pytest.mark.parametrize(("kind", "end"), [("rst", "rst"), ("fin", "fin"), ("truncate", "fin")])
@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_a_stream_breaks_off_after_so_many_events(fake: FakeLlama, kind: str, end: str, after: int) -> None:
    fake.fault(kind, after=after)
    reply = ask(fake.port, CHAT, STREAM)
    assert len(reply.events) == after
    assert reply.end == end
    assert reply.raw.endswith(b"\r\n0\r\n\r\n") is (kind == "truncate")
    assert fake.until_ended(CHAT)[0]["ended"] == "fault"
    fake.until(lambda state: state["processing"] == 0)


@pytest.mark.parametrize(("kind", "end"), [("rst", "rst"), ("fin", "fin"), ("truncate", "fin")])
def test_a_whole_reply_breaks_off_in_its_body(fake: FakeLlama, kind: str, end: str) -> None:
    fake.fault(kind)
    reply = ask(fake.port, CHAT, WHOLE)
    assert 0 < len(reply.body) < int(reply.headers["content-length"])
    assert reply.end == end


def test_the_process_dies_in_mid_stream() -> None:
    with FakeLlama("die,after=3") as fake:
        reply = ask(fake.port, CHAT, STREAM)
        assert len(reply.events) == 3
        assert reply.end in ("fin", "rst")
        assert fake.process.wait(timeout=10) == 9
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", fake.port))


def test_a_malformed_line_stands_in_the_middle(fake: FakeLlama) -> None:
    fake.fault("malformed", after=2)
    reply = ask(fake.port, CHAT, STREAM)
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply.events[2])
    assert len(reply.events) == EVENTS + 1
    assert reply.events[-1] == "[DONE]"


@pytest.mark.parametrize("after", [0, 4])
def test_an_error_event_ends_the_stream_without_done(fake: FakeLlama, after: int) -> None:
    fake.fault("error_event", after=after)
    reply = ask(fake.port, CHAT, STREAM)
    assert len(reply.events) == after + 1
    assert reply.chunks[-1]["error"]["type"] == "server_error"
    assert reply.raw.endswith(b"\r\n0\r\n\r\n")


def test_a_stall_holds_the_stream_and_lets_it_go_on(fake: FakeLlama) -> None:
    fake.fault("stall", after=3, seconds=0.5)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, STREAM)
        before = client.receive(0.25)
        rest = client.receive()
    assert (len(before.events), before.end) == (3, "silence")
    assert rest.raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_client_that_leaves_during_a_stall_is_noticed_at_once(fake: FakeLlama) -> None:
    fake.fault("stall", after=1, seconds=3600)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, STREAM)
        client.receive(until=b"data: ")
    assert fake.until_ended(CHAT)[0]["ended"] == "client_gone"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_delta_is_huge(fake: FakeLlama, path: str) -> None:
    fake.fault("huge", after=2)
    reply = ask(fake.port, path, STREAM | {"prompt": "hello"})
    assert max(map(len, reply.events)) > 1 << 20
    assert finishes(reply) == ["length"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_usage_is_missing(fake: FakeLlama, path: str) -> None:
    fake.fault("no_usage")
    reply = ask(fake.port, path, STREAM | {"prompt": "hello"})
    assert b'"usage"' not in reply.body
    assert finishes(reply) == ["length"]
    assert reply.events[-1] == "[DONE]"


def test_done_is_missing(fake: FakeLlama) -> None:
    fake.fault("no_done")
    reply = ask(fake.port, CHAT, STREAM)
    assert len(reply.events) == EVENTS - 1
    assert "usage" in reply.chunks[-1]
    assert reply.raw.endswith(b"\r\n0\r\n\r\n")


def test_the_finish_reason_comes_twice(fake: FakeLlama) -> None:
    fake.fault("double_finish")
    assert finishes(ask(fake.port, CHAT, STREAM)) == ["length", "length"]


def test_comments_stand_before_and_between_events(fake: FakeLlama) -> None:
    fake.fault("pings")
    body = ask(fake.port, CHAT, STREAM).body
    assert body.startswith(b":\n\ndata: ")
    assert body.count(b":\n\n") == EVENTS


def test_lines_end_in_crlf(fake: FakeLlama) -> None:
    fake.fault("crlf")
    body = ask(fake.port, CHAT, STREAM).body
    assert body.count(b"\r\n\r\n") == EVENTS
    assert b"\n" not in body.replace(b"\r\n", b"")


# -- on the wire ----------------------------------------------------------------


@pytest.mark.parametrize("body", [STREAM, WHOLE])
def test_the_content_type_is_wrong(fake: FakeLlama, body: dict[str, object]) -> None:
    fake.fault("wrong_type", type="text/plain")
    assert ask(fake.port, CHAT, body).headers["content-type"] == "text/plain"


def test_bytes_come_one_at_a_time(fake: FakeLlama) -> None:
    fake.fault("trickle", seconds=0.001)
    reply = ask(fake.port, CHAT, WHOLE)
    (request,) = fake.until_ended(CHAT)
    assert request["writes"] == len(reply.raw)
    assert reply.json["choices"]
    # Some meet in the socket's buffer; most do not.
    assert len(reply.parts) > len(reply.raw) / 2


def test_each_write_comes_in_two_segments(fake: FakeLlama) -> None:
    fake.fault("split", seconds=0.02)
    reply = ask(fake.port, CHAT, STREAM)
    assert len(reply.events) == EVENTS
    assert sum(not part.endswith(b"\n") for part in reply.parts) >= EVENTS - 2


def test_all_events_come_in_one_segment(fake: FakeLlama) -> None:
    fake.set(token_s=0.01)
    fake.fault("one_segment")
    reply = ask(fake.port, CHAT, STREAM)
    assert len(reply.events) == EVENTS
    assert len(reply.parts) == 1
    assert fake.until_ended(CHAT)[0]["writes"] == 1


def test_faults_add_up(fake: FakeLlama) -> None:
    for kind in ("pings", "crlf", "no_done", "split"):
        fake.fault(kind)
    body = ask(fake.port, CHAT, STREAM).body
    assert body.count(b":\r\n\r\n") == EVENTS - 1
    assert b"[DONE]" not in body


def test_every_kind_has_a_test_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}' not in text] == []
