"""When a client counts as one that does not read."""

import asyncio

from corral.web.reader import Reader

LIMIT_S = 8.0


class Buffer(asyncio.Transport):
    """What is left to be sent, and the time. Written by the test."""

    def __init__(self, unsent_bytes: int) -> None:
        super().__init__()
        self.unsent_bytes = unsent_bytes
        self.now = 100.0

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes


def looks_until_stalled(reader: Reader, buffer: Buffer, taken_bytes: int, looks: int) -> int:
    """How many looks it took, of so many at most; before each the client takes so much."""
    for look in range(looks):
        buffer.now += reader.pause_s
        buffer.unsent_bytes -= taken_bytes
        if reader.stalled():
            return look + 1
    return looks + 1


def begun(unsent_bytes: int = 1000) -> tuple[Reader, Buffer]:
    buffer = Buffer(unsent_bytes)
    reader = Reader(buffer, lambda: buffer.now, LIMIT_S)
    reader.begin()
    return reader, buffer


def test_a_client_that_takes_nothing_has_its_whole_time() -> None:
    reader, buffer = begun()
    assert looks_until_stalled(reader, buffer, 0, 100) * reader.pause_s == LIMIT_S


def test_a_client_that_takes_a_little_may_go_on_for_ever() -> None:
    reader, buffer = begun()
    assert looks_until_stalled(reader, buffer, 1, 500) == 501


def test_a_client_that_stops_has_its_whole_time_from_then_on() -> None:
    reader, buffer = begun()
    looks_until_stalled(reader, buffer, 10, 50)
    assert looks_until_stalled(reader, buffer, 0, 100) * reader.pause_s == LIMIT_S


def test_what_is_added_is_not_taken() -> None:
    reader, buffer = begun()
    assert looks_until_stalled(reader, buffer, -5, 100) * reader.pause_s == LIMIT_S


def test_a_new_beginning_gives_the_whole_time_again() -> None:
    reader, buffer = begun()
    looks_until_stalled(reader, buffer, 0, 3)
    reader.begin()
    assert looks_until_stalled(reader, buffer, 0, 100) * reader.pause_s == LIMIT_S
