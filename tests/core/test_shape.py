"""Chunks that differ in their text only are found, and nothing else is taken for one."""

import pytest

from corral.core.shape import WINDOW_BYTES, Shape

SAME = (b'"model":"m"', b'"model":"m"')
BEFORE = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"'
AFTER = b'"}}],"created":1,"model":"m"}\n\n'


def chunk(text: bytes, before: bytes = BEFORE, after: bytes = AFTER) -> bytes:
    return before + text + after


def shape(event: bytes = chunk(b"Hello"), rename: tuple[bytes, bytes] = SAME) -> Shape:
    found = Shape.of(event, rename)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "around",
    [
        b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"%b"}}]}\n\n',
        b'data: {"choices":[{"text":"%b","index":0,"logprobs":null,"finish_reason":null}],"created":1}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]}}]}\n\n',
        b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null}]}\n\n',
    ],
)
@pytest.mark.parametrize("text", [b"", b" a", b'\\"', b"\\\\", b'\\"}}],\\"created\\":1'])
def test_the_text_of_a_chunk_is_found(around: bytes, text: bytes) -> None:
    row = around % b"x" + around % b'\\"y' + around % b""
    assert shape(around % text).texts(row, 0) == [b"x", b'\\"y', b""]


@pytest.mark.parametrize(
    "event",
    [
        b"data: [DONE]\n\n",
        b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"cut short\n\n',
        b'data: {"choices":[],"id":"\\"delta\\":{\\"content\\":\\"x\\"}"}\n\n',
        b'data: {"choices":[{"delta":{"name":"x"}}]}\n\n',
        # A text with this before what follows would be a key.
        b'data: {"choices":[{"delta":{"content":"usage":1}}]}\n\n',
    ],
)
def test_what_has_no_text_has_no_shape(event: bytes) -> None:
    assert Shape.of(event, SAME) is None


def test_a_row_begins_where_it_is_sought_and_ends_where_something_else_comes() -> None:
    row = chunk(b"a") + chunk(b"b")
    for other in (b"", b"data: [DONE]\n\n", chunk(b"c", after=AFTER.replace(b"1", b"2")), chunk(b"c")[:-1]):
        assert shape().texts(b": ping\n\n" + row + other, 8) == [b"a", b"b"]
    assert shape().texts(row + chunk(b"c", after=b'"}}]}\n\n') + chunk(b"d"), 0) == [b"a", b"b"]
    assert shape().texts(b": ping\n\n" + row, 0) == []


def test_it_is_known_how_far_a_row_reaches() -> None:
    row = chunk(b"a") + chunk(b"") + chunk(b"longer")
    assert shape().came([b"a", b"", b"longer"]) == len(row)


@pytest.mark.parametrize(
    "bad",
    [
        b'"',
        b"\\",
        b'","usage":{"x":"',
        b'a","b',
        b'a",["b',
        b'b"],"c',
        b"\xff",
        b"\\ud83d",
        b"\\x",
        b"\n",
        b"\r",
        b"\0",
    ],
)
@pytest.mark.parametrize("around", [(b"", b""), (b"a", b"b"), (b'a",["b', b'b"],"c')])
def test_what_is_not_the_inside_of_one_string_is_no_text(bad: bytes, around: tuple[bytes, bytes]) -> None:
    first, last = around
    assert shape().texts(chunk(first) + chunk(bad) + chunk(last), 0) == []


def test_no_text_borrows_its_end_from_the_next() -> None:
    assert shape().texts(chunk(b"a\\") + chunk(b',"b'), 0) == []


def test_a_long_row_is_taken_in_parts() -> None:
    row = chunk(b"token") * (2 * WINDOW_BYTES // len(chunk(b"token")))
    start = taken = 0
    while texts := shape().texts(row, start):
        start += shape().came(texts)
        taken += 1
    assert start == len(row)
    assert taken > 1


@pytest.mark.parametrize(
    ("before", "after"), [(BEFORE, AFTER), (BEFORE.replace(b"{", b'{"model":"m",', 1), b'"}}]}\n\n')]
)
def test_the_client_sees_the_model_by_its_own_name(before: bytes, after: bytes) -> None:
    rename = (b'"model":"m"', b'"model":"mine"')
    found = shape(chunk(b"x", before, after), rename)
    came = chunk(b"a", before, after) + chunk(b"b", before, after)
    texts = found.texts(came, 0)
    assert texts == [b"a", b"b"]
    assert found.shown(texts) == came.replace(*rename)
