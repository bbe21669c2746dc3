"""A connection to an upstream, in use or idle."""

import asyncio
import socket
from functools import lru_cache
from math import inf
from typing import cast

from corral.upstream.address import Address
from corral.upstream.alarm import Alarm
from corral.upstream.reply import Reply

# A peer that says 'timeout=5' closes after five seconds; a fifth less leaves
# no window in which a request meets a closing socket.
PEER_TIMEOUT_SHARE = 0.8

# A host that is gone says nothing, and neither does a llama-server that reads a long prompt; but its kernel answers.
# It is asked after so much silence, again and again, and the connection ends when nothing has come for so long.
ASK_KERNEL_S = 3
HOST_SILENCE_S = 12
# TCP_USER_TIMEOUT (ms) is for what was sent and never confirmed; macOS has none, and another name for TCP_KEEPIDLE.
HOST_WATCH = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", ASK_KERNEL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", ASK_KERNEL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", HOST_SILENCE_S // ASK_KERNEL_S - 1),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", HOST_SILENCE_S * 1000),
    )
    if hasattr(socket, name)
)
# It does not vanish while we are here, and setting options takes a fiftieth of the time of a stream.
THIS_HOST = frozenset({"127.0.0.1", "::1", "localhost"})


class Connection(asyncio.Protocol):
    """Carries one reply at a time, or lies idle. Writers: its transport's callbacks and the reply it carries."""

    __slots__ = ("_idle", "_transport", "_uses_left", "address", "alarm", "reply", "reused")

    def __init__(self, address: Address, idle: "IdleConnections", loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        # None while idle.
        self.reply: Reply | None = None
        # It has carried a reply before.
        self.reused = False
        self.alarm = Alarm(loop, self._ring)
        self._idle = idle
        self._uses_left: float = idle.max_uses
        self._transport: asyncio.Transport | None = None

    async def exchange(self, request: bytes, body: bytes, head_s: float, *, bodiless: bool) -> Reply:
        """Write a request; its reply, when the head of it has come."""
        reply = self.reply = Reply(self, head_s, bodiless=bodiless)
        self.alarm.set(head_s)
        if self._transport is None or self._transport.is_closing():
            reply.lost()
        elif body:
            self._transport.writelines((request, body))
        else:
            self._transport.write(request)
        await reply.until_head()
        return reply

    def release(self, keep_alive: bytes | None) -> None:
        """The reply is whole and read: keep the connection for the next, if it is fit. ``keep_alive``: the header."""
        transport = self._transport
        timeout_s, uses = _terms(keep_alive) if keep_alive else (inf, self._uses_left)
        self._uses_left = min(self._uses_left - 1, uses)
        # Where the request is not written yet, the reply was an early refusal.
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or self._uses_left <= 0:
            self.abort()
            return
        self.reply = None
        self.reused = True
        self._idle.keep(self, timeout_s)

    def flow(self, *, on: bool) -> None:
        """Read from the socket or leave what comes in the kernel, whose buffer fills and stops the peer."""
        if self._transport is None:
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def abort(self) -> None:
        """Close at once, whatever is under way. Idempotent, does not wait."""
        self.alarm.stop()
        if self.reply is None:
            self._idle.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _ring(self) -> None:
        if self.reply is None:
            self.abort()
        else:
            self.reply.silent()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Both event loops set TCP_NODELAY themselves.
        self._transport = cast(asyncio.Transport, transport)
        if self.address.host not in THIS_HOST:
            connected = transport.get_extra_info("socket")
            for option in HOST_WATCH:
                connected.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        if self.reply is None:
            # Nothing was asked: a farewell, or the rest of something broken.
            self.abort()
        else:
            self.reply.receive(data)

    def eof_received(self) -> None:
        if self.reply is None:
            self.abort()
        else:
            self.reply.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.alarm.stop()
        if self.reply is None:
            self._idle.forget(self)
        else:
            self.reply.lost(exc)
            self.reply = None


class IdleConnections:
    """Connections that wait for their next request, the last one used on top. Writer: itself.

    An idle connection leaves by being taken, by its expiry (its own alarm),
    or when its peer closes it or says something.
    """

    def __init__(self, *, expiry_s: float, max_uses: int, max_idle: int) -> None:
        self.max_uses = max_uses
        self._expiry_s = expiry_s
        self._room = max_idle
        self._by_address: dict[Address, list[Connection]] = {}

    def take(self, address: Address) -> Connection | None:
        connections = self._by_address.get(address)
        if not connections:
            return None
        connection = connections.pop()
        self._room += 1
        if not connections:
            del self._by_address[address]
        return connection

    def keep(self, connection: Connection, timeout_s: float) -> None:
        """Keep it for at most ``timeout_s``; closes it where there is no room."""
        expiry_s = min(self._expiry_s, timeout_s)
        if self._room <= 0 or expiry_s <= 0:
            connection.abort()
            return
        self._room -= 1
        self._by_address.setdefault(connection.address, []).append(connection)
        connection.alarm.set(expiry_s)

    def forget(self, connection: Connection) -> None:
        """Take this one out, if it is here."""
        connections = self._by_address.get(connection.address)
        if not connections or connection not in connections:
            return
        connections.remove(connection)
        self._room += 1
        if not connections:
            del self._by_address[connection.address]

    def close(self) -> None:
        """Close all, and keep none from now on."""
        for connections in list(self._by_address.values()):
            for connection in list(connections):
                connection.abort()
        self._room = 0


@lru_cache(maxsize=64)
def _terms(keep_alive: bytes) -> tuple[float, float]:
    """How long a peer keeps an idle connection and for how many requests more: ``timeout=5, max=100``."""
    terms = {"timeout": inf, "max": inf}
    for term in keep_alive.decode("latin-1").split(","):
        name, _, value = term.partition("=")
        if value.strip().isdecimal():
            terms[name.strip().lower()] = int(value)
    return terms["timeout"] * PEER_TIMEOUT_SHARE, terms["max"]
