"""Clients that ask as fast as they are let, of one gateway after the other, and remember what they were answered.

crowd = Crowd([8001, 8002], KEY, body, clients=200)
asyncio.run(crowd.run(180.0))
crowd.answered[0].sent_s
"""

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
# Who was refused asks again after so long, whatever it was told: a client that runs wild.
PAUSE_S = (0.15, 0.35)
# Longer than any answer here takes.
LIMIT_S = 30.0
READ_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that was served: it was let in at some time between these two, and its answer ended then too."""

    sent_s: float
    received_s: float
    tokens: int


class Crowd:
    """All clients of one measurement. One writer: the tasks of ``run``."""

    def __init__(self, ports: list[int], key: str, body: dict[str, Any], clients: int) -> None:
        self.answered: list[Answered] = []
        # By status; 0 is a connection that broke.
        self.statuses: Counter[int] = Counter()
        # Those that still run.
        self.ports = ports
        self._clients = clients
        content = json.dumps(body).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content

    async def run(self, seconds: float) -> None:
        """Until the time is up, and the last answer is there."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._ask_until(until, random.Random(number)))

    async def _ask_until(self, until: float, chance: random.Random) -> None:
        while time.monotonic() < until:
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._converse(chance.choice(self.ports), until, chance)
            if time.monotonic() < until:
                self.statuses[0] += 1
                await asyncio.sleep(chance.uniform(*PAUSE_S))

    async def _converse(self, port: int, until: float, chance: random.Random) -> None:
        """One connection, as long as it lasts."""
        reader, writer = await asyncio.open_connection(HOST, port, limit=READ_BYTES)
        try:
            while time.monotonic() < until:
                sent_s = time.monotonic()
                writer.write(self._request)
                async with asyncio.timeout(LIMIT_S):
                    status, content = await _answer(reader)
                received_s = time.monotonic()
                self.statuses[status] += 1
                if status == 200:
                    self.answered.append(Answered(sent_s, received_s, json.loads(content)["usage"]["total_tokens"]))
                else:
                    await asyncio.sleep(chance.uniform(*PAUSE_S))
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    )
    return int(head[9:12]), await reader.readexactly(length)


def most_within(answered: list[Answered], window_s: float, *, tokens: bool) -> int:
    """The most requests, or tokens, of which a span of so long certainly holds all: sent and answered within it."""
    most = 0
    ordered = sorted(answered, key=lambda each: each.sent_s)
    for place, first in enumerate(ordered):
        end_s = first.sent_s + window_s
        held = 0
        for each in ordered[place:]:
            if each.sent_s > end_s:
                break
            if each.received_s <= end_s:
                held += each.tokens if tokens else 1
        most = max(most, held)
    return most
