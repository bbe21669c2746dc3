"""A llama-server of which only the questions about itself are answered, and only as a test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from corral.upstream.address import Address

PROPS: dict[str, Any] = {
    "default_generation_settings": {"params": {}, "n_ctx": 2048},
    "total_slots": 2,
    "model_alias": "smol",
    "modalities": {"vision": False, "audio": True},
    "chat_template_caps": {"supports_tools": False},
    "endpoint_slots": True,
}


def slot(number: int, task: int | None = None) -> dict[str, Any]:
    """A slot as ``/slots`` shows it; an idle one still names its last task."""
    return {"id": number, "n_ctx": 2048, "is_processing": task is not None, "id_task": task if task is not None else 3}


class ToldLlama:
    """Answers with the status and JSON that stand here at the time. Written by the test."""

    def __init__(self) -> None:
        self.health: tuple[int, object] = (200, {"status": "ok"})
        self.props: tuple[int, object] = (200, PROPS)
        self.slots: tuple[int, object] = (200, [slot(0), slot(1)])
        # What was asked, with its key, in order.
        self.asked: list[tuple[str, str]] = []
        # While cleared, questions stay unanswered.
        self.answers = asyncio.Event()
        self.answers.set()
        self.address = Address("127.0.0.1", 0)
        self._asked_more = asyncio.Event()

    def show(self, *slots: dict[str, Any]) -> None:
        self.slots = (200, list(slots))

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)

    async def until_asked(self, path: str, times: int = 1) -> None:
        """Wait until it has been asked this so many more times."""
        goal = self.count(path) + times
        while self.count(path) < goal:
            self._asked_more.clear()
            await self._asked_more.wait()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ", 2)[1]
                key = next((line[22:] for line in head.split("\r\n") if line.startswith("authorization: Bearer ")), "")
                self.asked.append((path, key))
                self._asked_more.set()
                await self.answers.wait()
                status, told = {"/health": self.health, "/props": self.props, "/slots": self.slots}[path]
                body = told if isinstance(told, bytes) else json.dumps(told).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def told_llama(told: ToldLlama | None = None) -> AsyncIterator[ToldLlama]:
    """Serve on a free port, or, once it has served, on the same one again."""
    llama = told or ToldLlama()
    connections: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(group.create_task(llama.answer(reader, writer)))

        server = await asyncio.start_server(accept, llama.address.host, llama.address.port)
        llama.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield llama
        finally:
            server.close()
            for connection in connections:
                connection.cancel()


async def until(claim: Callable[[], bool], changed: asyncio.Event) -> None:
    """Wait until the claim holds; it is asked anew whenever something has changed."""
    while not claim():
        changed.clear()
        await changed.wait()
