"""The listening socket: open, closed, or full; the port stays ours throughout."""

import asyncio
import socket
from collections.abc import Callable


class Door:
    """Written by its own methods. What they do to new connections does not touch those that exist."""

    def __init__(self, host: str, port: int, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol
        # Bound and never listening, so that the port remains ours, and refused, while the door is closed.
        self._keeper = self._bound(host, port)
        self.host, self.port = self._keeper.getsockname()[:2]
        self.state = "refusing"
        self._server: asyncio.Server | None = None
        self._fillers: list[socket.socket] = []

    async def open(self) -> None:
        """Connections are accepted; nothing happens when they are already."""
        if self.state == "open":
            return
        self.refuse()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=self._bound(self.host, self.port), backlog=512
        )
        self.state = "open"

    def refuse(self) -> None:
        """Connecting is refused until ``open``."""
        if self._server is not None:
            self._server.close()
        for filler in self._fillers:
            filler.close()
        self._server, self._fillers = None, []
        self.state = "refusing"

    def hang(self) -> None:
        """Connecting hangs until ``open``: nobody accepts and the queue is full."""
        if self.state == "hanging":
            return
        self.refuse()
        listener = self._bound(self.host, self.port)
        listener.listen(0)
        self._fillers = [listener, *(self._filler() for _ in range(2))]
        self.state = "hanging"

    def _bound(self, host: str, port: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        return bound

    def _filler(self) -> socket.socket:
        filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        filler.setblocking(False)
        filler.connect_ex((self.host, self.port))
        return filler
