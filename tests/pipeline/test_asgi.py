"""An answer over ASGI's send: whole and streamed, to slow clients and to departed ones."""

import asyncio

import pytest

from corral.pipeline.asgi import HIGH_WATER_BYTES, LOW_WATER_BYTES, AsgiAnswer
from support.asgi_client import DISCONNECT, AsgiClient, body
from support.loops import on_both_loops
from support.pools import settle

# Long enough for what is to succeed, short enough for what is to fail.
LONG_S = 20.0
SHORT_S = 0.05


def answer_to(client: AsgiClient, *, stall_s: float = LONG_S) -> AsgiAnswer:
    return AsgiAnswer(client.receive, client.send, stall_s=stall_s)


# Whole answers.


@on_both_loops
async def test_a_whole_answer_has_its_length_and_the_common_headers() -> None:
    client = AsgiClient()
    async with answer_to(client) as answer:
        answer.headers.append((b"x-request-id", b"r"))
        answer.send(404, [(b"content-type", b"text/plain")], b"gone")
    start, rest = client.sent
    assert (start["status"], rest) == (404, {"type": "http.response.body", "body": b"gone", "more_body": False})
    assert start["headers"] == [
        (b"content-type", b"text/plain"),
        (b"content-length", b"4"),
        (b"x-request-id", b"r"),
    ]
    assert (answer.started, answer.ended, answer.gone, answer.bytes_sent) == (True, True, False, 4)


@on_both_loops
async def test_a_client_that_takes_nothing_of_a_whole_answer_is_cut_off() -> None:
    client = AsgiClient()
    client.stop_reading()
    told: list[str] = []
    async with answer_to(client, stall_s=SHORT_S) as answer:
        answer.on_gone(lambda: told.append("gone"))
        answer.send(200, [], b"x")
    assert answer.gone
    # The exchange is over; there is nothing to call off any more.
    assert told == []


@on_both_loops
@pytest.mark.parametrize("size", [0, 1, HIGH_WATER_BYTES, HIGH_WATER_BYTES + 1, 5 * HIGH_WATER_BYTES])
async def test_a_whole_answer_leaves_no_more_than_a_buffer_to_be_taken_at_its_end(size: int) -> None:
    client = AsgiClient()
    content = bytes(each % 251 for each in range(size))
    async with answer_to(client) as answer:
        answer.send(200, [], content)
    _, *pieces, last = client.sent
    assert client.content() == content
    assert all(piece["more_body"] for piece in pieces)
    assert not last["more_body"]
    assert all(len(piece["body"]) <= HIGH_WATER_BYTES for piece in (*pieces, last))


@on_both_loops
async def test_an_exchange_that_answers_nothing_sends_nothing() -> None:
    client = AsgiClient()
    async with answer_to(client) as answer:
        answer.on_gone(lambda: None)
    assert client.sent == []


# Streams.


@on_both_loops
async def test_a_stream_arrives_whole_and_in_order() -> None:
    client = AsgiClient()
    pieces = [b"<%d>" % number for number in range(500)]
    async with answer_to(client) as answer:
        answer.start(200, [(b"content-type", b"text/event-stream")])
        for number, piece in enumerate(pieces):
            answer.write(piece)
            if number % 7 == 0:
                await asyncio.sleep(0)
        answer.end()
    assert client.sent[0] == {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    assert client.content() == b"".join(pieces)
    assert [message["more_body"] for message in client.sent[1:]] == [True] * (len(client.sent) - 2) + [False]
    assert answer.bytes_sent == len(b"".join(pieces))


@on_both_loops
async def test_the_first_piece_leaves_without_waiting_for_the_next() -> None:
    client = AsgiClient()
    async with answer_to(client) as answer:
        answer.start(200, [])
        answer.write(b"first")
        await client.until(lambda: client.content() == b"first")
        answer.write(b"second")
        await client.until(lambda: client.content() == b"firstsecond")
        answer.end()


@on_both_loops
async def test_what_is_written_after_the_end_is_dropped() -> None:
    client = AsgiClient()
    async with answer_to(client) as answer:
        answer.start(200, [])
        answer.end()
        answer.write(b"late")
        answer.end()
    assert client.content() == b""
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]


@on_both_loops
async def test_a_slow_client_pauses_the_upstream_and_one_that_has_caught_up_resumes_it() -> None:
    client = AsgiClient()
    calls: list[str] = []
    async with answer_to(client) as answer:
        answer.watch(lambda: calls.append("pause"), lambda: calls.append("resume"))
        answer.start(200, [])
        await client.until(lambda: len(client.sent) == 1)
        client.stop_reading()
        answer.write(b"x" * HIGH_WATER_BYTES)
        assert calls == []
        answer.write(b"x")
        answer.write(b"x")
        assert calls == ["pause"]
        client.read_on()
        await client.until(lambda: len(client.content()) == HIGH_WATER_BYTES + 2)
        answer.end()
    assert calls == ["pause", "resume"]


@on_both_loops
async def test_a_retry_of_a_stream_for_a_slow_client_begins_paused() -> None:
    client = AsgiClient()
    calls: list[str] = []
    async with answer_to(client) as answer:
        answer.start(200, [])
        client.stop_reading()
        answer.write(b"x" * (HIGH_WATER_BYTES + 1))
        answer.watch(lambda: calls.append("pause"), lambda: calls.append("resume"))
        assert calls == ["pause"]
        client.read_on()
        answer.end()
    assert calls == ["pause", "resume"]


def test_the_marks_leave_room_between_them() -> None:
    assert 0 < LOW_WATER_BYTES < HIGH_WATER_BYTES


# Clients that leave.


@on_both_loops
async def test_a_client_that_leaves_is_told_of_once() -> None:
    client = AsgiClient()
    told: asyncio.Queue[str] = asyncio.Queue()
    async with answer_to(client, stall_s=SHORT_S) as answer:
        answer.on_gone(lambda: told.put_nowait("gone"))
        answer.start(200, [])
        answer.write(b"x")
        client.leave()
        assert await told.get() == "gone"
        assert answer.gone
        answer.write(b"late")
        answer.end()
    assert told.empty()
    assert b"late" not in client.content()


@on_both_loops
async def test_a_client_that_leaves_before_anything_was_sent_is_told_of() -> None:
    client = AsgiClient(body(b""), body(b""), DISCONNECT)
    gone = asyncio.Event()
    async with answer_to(client) as answer:
        answer.on_gone(gone.set)
        await gone.wait()
    assert client.sent == []


@on_both_loops
async def test_a_client_that_leaves_after_the_end_is_no_departed_client() -> None:
    client = AsgiClient()
    told: list[str] = []
    async with answer_to(client) as answer:
        answer.on_gone(lambda: told.append("gone"))
        answer.start(200, [])
        answer.write(b"x")
        answer.end()
        client.leave()
    assert told == []
    assert client.content() == b"x"


@on_both_loops
async def test_a_client_that_stops_reading_is_cut_off() -> None:
    client = AsgiClient()
    gone = asyncio.Event()
    async with answer_to(client, stall_s=SHORT_S) as answer:
        answer.on_gone(gone.set)
        client.stop_reading()
        answer.start(200, [])
        answer.write(b"x")
        await gone.wait()
        assert answer.gone
    assert client.sent == []


@on_both_loops
async def test_a_client_that_stops_reading_and_then_leaves_is_told_of_once() -> None:
    client = AsgiClient()
    told: asyncio.Queue[str] = asyncio.Queue()
    async with answer_to(client, stall_s=SHORT_S) as answer:
        answer.on_gone(lambda: told.put_nowait("gone"))
        client.stop_reading()
        answer.start(200, [])
        assert await told.get() == "gone"
        client.leave()
        await settle()
    assert told.empty()


@on_both_loops
async def test_a_client_that_stops_reading_is_cut_off_after_the_end_too() -> None:
    client = AsgiClient()
    told: list[str] = []
    async with answer_to(client, stall_s=SHORT_S) as answer:
        answer.on_gone(lambda: told.append("gone"))
        answer.start(200, [])
        client.stop_reading()
        answer.write(b"x")
        answer.end()
    assert answer.gone
    assert told == []


@on_both_loops
async def test_a_server_that_refuses_to_send_has_lost_the_client() -> None:
    client = AsgiClient()
    client.failure = OSError("the client has left")
    gone = asyncio.Event()
    async with answer_to(client) as answer:
        answer.on_gone(gone.set)
        answer.start(200, [])
        await gone.wait()


@on_both_loops
async def test_an_exchange_that_is_cancelled_leaves_nothing_running() -> None:
    client = AsgiClient()
    client.stop_reading()

    async def exchange() -> None:
        async with answer_to(client) as answer:
            answer.on_gone(lambda: None)
            answer.start(200, [])
            answer.write(b"x" * 1024)
            await asyncio.Event().wait()

    task = asyncio.create_task(exchange())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on_both_loops
async def test_an_exchange_that_its_departed_client_cancels_leaves_nothing_running() -> None:
    client = AsgiClient()

    async def exchange() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with answer_to(client) as answer:
            answer.on_gone(task.cancel)
            answer.start(200, [])
            client.leave()
            await asyncio.Event().wait()

    task = asyncio.create_task(exchange())
    with pytest.raises(asyncio.CancelledError):
        await task
