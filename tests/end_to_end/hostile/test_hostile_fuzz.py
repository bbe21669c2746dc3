"""Sound requests that are cut, doubled, swapped and spoilt at random: each is answered, refused or left, and soon."""

import random
import socket
from collections.abc import Callable

import pytest

from support.edge import Edge
from support.raw_client import RawClient
from support.spelled import (
    AUTHORIZED,
    CHUNKED,
    HEALTH,
    HOST,
    JSON,
    POST,
    SHORT,
    answers_of,
    asked,
    in_chunks,
    posted,
    spelled,
)

ROUNDS = 3
# At the same time, so that those that end by a limit end together.
CLIENTS = 60
# What means something to a parser.
MORSELS = (
    *(b"\r\n", b"\n", b"\0", b" ", b":", b"\t", b"%00", b"\xff", b"\r\n\r\n", b"0\r\n\r\n"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Connection: upgrade\r\nUpgrade: x\r\n", b"Expect: 100-continue\r\n"),
)
SOUND = (
    posted(),
    asked("hello", stream=True, max_tokens=20),
    spelled(POST, HOST, AUTHORIZED, JSON, CHUNKED, body=in_chunks(SHORT, 9, b";a=b", b"X: y\r\n")),
    posted("Connection: Upgrade", "Upgrade: h2c"),
    posted("Expect: 100-continue"),
    posted(line="POST http://x/v1/chat/completions?a=b HTTP/1.1"),
    HEALTH,
)
Spoil = Callable[[random.Random, bytes], bytes]


def cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def doubled(dice: random.Random, data: bytes) -> bytes:
    start, end = between(dice, data)
    return data[:end] + data[start:]


def left_out(dice: random.Random, data: bytes) -> bytes:
    start, end = between(dice, data)
    return data[:start] + data[end:]


def swapped(dice: random.Random, data: bytes) -> bytes:
    start, end = between(dice, data)
    middle = dice.randint(start, end)
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def larded(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + dice.choice(MORSELS) + data[at:]


def flipped(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << dice.randrange(8),)) + data[at + 1 :]


def garbage(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))] + dice.randbytes(dice.randrange(1, 3000))


def unspoilt(dice: random.Random, data: bytes) -> bytes:
    return data


def between(dice: random.Random, data: bytes) -> tuple[int, int]:
    start = dice.randrange(len(data))
    return start, min(len(data), start + dice.randrange(1, 200))


SPOILS: tuple[Spoil, ...] = (cut, doubled, left_out, swapped, larded, larded, flipped, flipped, garbage, unspoilt)


def attack(dice: random.Random) -> list[bytes]:
    """Some requests in a row, most of them spoilt, in some pieces."""
    data = b"".join(dice.choice(SPOILS)(dice, dice.choice(SOUND)) for _ in range(dice.randint(1, 4)))
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 0, 1, 5))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def deliver(client: RawClient, pieces: list[bytes]) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for piece in pieces:
            client.socket.sendall(piece)
    except ConnectionError:
        # It has been refused already.
        return


def ensure_sane(client: RawClient, pieces: list[bytes]) -> None:
    """The connection has ended, and every answer on it is a right one or an error in OpenAI's shape."""
    reply = client.receive()
    assert reply.end in ("fin", "rst"), (pieces, reply)
    for answer in answers_of(reply):
        assert answer.status < 500, (pieces, answer)
        assert answer.status == 200 or answer.code, (pieces, answer)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whatever_comes_is_answered_or_refused_and_nobody_waits(edge: Edge, seed: int) -> None:
    dice = random.Random(seed)
    attacks = [attack(dice) for _ in range(CLIENTS)]
    before = edge.gateway.metric("process_resident_memory_bytes")
    clients = [RawClient(edge.port) for _ in attacks]
    for client, pieces in zip(clients, attacks, strict=True):
        deliver(client, pieces)
    for client, pieces in zip(clients, attacks, strict=True):
        with client:
            ensure_sane(client, pieces)
    assert edge.gateway.metric("process_resident_memory_bytes") < before + 8_000_000
