"""A stream is cut into the same events, wherever the network cut it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.errors import BadReply
from corral.core.sse import EVENT_LIMIT_BYTES, Splitter, comment, payload

MIB = 1024 * 1024

# Few bytes, so that line ends of each kind meet one another in every way.
streams = st.lists(st.sampled_from([b"a", b"data: b", b":", b"\n", b"\r", b"\r\n", b"\n\n"]), max_size=30).map(b"".join)


def split(*pieces: bytes) -> list[bytes]:
    splitter = Splitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


def expected(stream: bytes) -> list[bytes]:
    """The events by the standard's own words: a line ends with CRLF, LF or CR, an event with an empty line."""
    *lines, _rest = re.split(rb"\r\n|\n|\r", stream)
    events, event = [], b""
    for line in lines:
        if line:
            event += line + b"\n"
        elif event:
            events.append(event + b"\n")
            event = b""
    return events


@given(streams, st.data())
def test_any_cut_of_any_stream_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(*pieces) == expected(stream)


@given(streams)
def test_a_stream_that_comes_byte_by_byte_gives_the_same_events(stream: bytes) -> None:
    assert split(*(stream[at : at + 1] for at in range(len(stream)))) == expected(stream)


def test_events_keep_their_bytes_and_their_blank_line() -> None:
    assert split(b'data: {"a":1}\n\ndata: [DONE]\n\n') == [b'data: {"a":1}\n\n', b"data: [DONE]\n\n"]


def test_what_follows_the_last_blank_line_waits_for_more() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\n\ndata: b\n") == [b"data: a\n\n"]
    assert splitter.feed(b"\n") == [b"data: b\n\n"]


def test_a_carriage_return_within_the_last_bytes_does_not_hold_an_event_back() -> None:
    assert split(b"data: a\r\n\r") == [b"data: a\n\n"]


def test_a_large_event_in_many_pieces_is_put_together() -> None:
    pieces = [b"data: ", *[b"x" * 1000] * 1000, b"\n", b"\n"]
    assert split(*pieces) == [b"data: " + b"x" * 1_000_000 + b"\n\n"]


def test_an_event_that_grows_beyond_the_limit_is_refused() -> None:
    splitter = Splitter()
    for _ in range(EVENT_LIMIT_BYTES // MIB):
        splitter.feed(b"x" * MIB)
    with pytest.raises(BadReply, match="too large"):
        splitter.feed(b"x")


def test_the_limit_counts_anew_with_each_event() -> None:
    splitter = Splitter()
    for _ in range(3):
        for _ in range(EVENT_LIMIT_BYTES // MIB - 1):
            assert splitter.feed(b"x" * MIB) == []
        assert len(splitter.feed(b"\n\n")) == 1


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: [DONE]\n\n", b"[DONE]"),
        (b"data:[DONE]\n\n", b"[DONE]"),
        (b"data:  two spaces\n\n", b" two spaces"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: error\ndata: a\n\n", b"a"),
        (b"data: a\nid: 1\n\n", b"a"),
        (b"data:\n\n", b""),
        (b": waiting\n\n", None),
        (b":\n\n", None),
        (b"event: ping\n\n", None),
        (b"nonsense\n\n", None),
    ],
)
def test_the_payload_is_what_stands_after_data(event: bytes, data: bytes | None) -> None:
    assert payload(event) == data


def test_a_comment_carries_no_data() -> None:
    assert split(comment("waiting")) == [b": waiting\n\n"]
    assert payload(comment("waiting")) is None
