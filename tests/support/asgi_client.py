"""The other side of ASGI's ``receive`` and ``send``."""

import asyncio
from collections.abc import Callable

from corral.pipeline.asgi import Message

DISCONNECT: Message = {"type": "http.disconnect"}


def body(piece: bytes, *, more: bool = False) -> Message:
    """A piece of a request's body."""
    return {"type": "http.request", "body": piece, "more_body": more}


class AsgiClient:
    """The other side of ``receive`` and ``send``, as an ASGI server would be."""

    def __init__(self, *incoming: Message) -> None:
        self.sent: list[Message] = []
        self.failure: Exception | None = None
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        for message in incoming:
            self._incoming.put_nowait(message)
        self._reads = asyncio.Event()
        self._reads.set()
        self._sent_more = asyncio.Event()

    async def receive(self) -> Message:
        return await self._incoming.get()

    async def send(self, message: Message) -> None:
        await self._reads.wait()
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)
        self._sent_more.set()

    def leave(self) -> None:
        self._incoming.put_nowait(DISCONNECT)

    def stop_reading(self) -> None:
        self._reads.clear()

    def read_on(self) -> None:
        self._reads.set()

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until the claim holds; it is asked whenever something was sent."""
        while not claim():
            self._sent_more.clear()
            await self._sent_more.wait()

    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)
