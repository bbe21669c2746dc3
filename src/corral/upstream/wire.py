"""The HTTP/1.1 client that talks to llama-server: the one place that opens sockets to upstreams."""

import asyncio
import re
import ssl
from collections.abc import Sequence
from functools import lru_cache

from corral.core.errors import ConnectFailed, ConnectionLost, UpstreamTimeout
from corral.upstream.address import VISIBLE, Address
from corral.upstream.connection import Connection, IdleConnections
from corral.upstream.reply import Reply

__all__ = ["Address", "Client", "Reply"]

# A smaller body goes out in one piece with the head; to copy a larger one
# costs more than a second system call.
JOINED_BODY_BYTES = 64 * 1024

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LINE_BREAKERS = re.compile(rb"[\r\n\0]")
# Headers that say where a request ends or where it goes are the client's own.
OWN_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


class Client:
    """Sends requests and keeps idle connections for the next ones. Writer: itself.

    The number of open connections has no limit: an upstream's slots are the
    limit, and a limit here would be a second, hidden queue.
    """

    def __init__(self, *, idle_expiry_s: float = 4.0, max_uses: int = 90, max_idle: int = 64) -> None:
        """llama-server closes a connection after 5 s of idleness or 100 requests; the defaults stay below."""
        self._idle = IdleConnections(expiry_s=idle_expiry_s, max_uses=max_uses, max_idle=max_idle)
        self._tls: ssl.SSLContext | None = None

    async def send(
        self,
        address: Address,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        connect_s: float,
        head_s: float,
    ) -> Reply:
        """Send a request and wait for the status line and headers of its reply; ``head_s`` bounds that wait.

        An idle connection that turns out to be closed costs one more
        connection and nothing else. Raises ConnectFailed, ConnectionLost,
        BadReply and UpstreamTimeout (``connect``, ``first_byte``), and
        ValueError for what would break out of the request's head.
        """
        request = _encode(address, method, path, headers, body)
        if len(body) < JOINED_BODY_BYTES:
            request, body = request + body, b""
        bodiless = method == "HEAD"
        connection = self._idle.take(address)
        if connection is not None:
            try:
                return await connection.exchange(request, body, head_s, bodiless=bodiless)
            except ConnectionLost as error:
                if not error.reused:
                    raise
        connection = await self._connect(address, connect_s)
        return await connection.exchange(request, body, head_s, bodiless=bodiless)

    async def close(self) -> None:
        """Close the idle connections and keep none from now on; those in use close with their replies."""
        self._idle.close()
        # The transports let go of their sockets in the turns that follow.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _connect(self, address: Address, connect_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(address, self._idle, loop)
        context = self._tls_context() if address.tls else None
        try:
            async with asyncio.timeout(connect_s) as scope:
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=context)
        except OSError as error:
            connection.abort()
            # TimeoutError is an OSError, and the kernel has time limits too.
            if scope.expired():
                raise UpstreamTimeout("connect", connect_s) from error
            raise ConnectFailed("the model server does not accept connections") from error
        except BaseException:
            connection.abort()
            raise
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        # Reads the system's certificates, which takes a while: only where it is needed.
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _encode(address: Address, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The request line and headers; raises ValueError for what would break out of them."""
    values = tuple([value for _, value in headers])
    if LINE_BREAKERS.search(b" ".join(values)):
        raise ValueError("a header's value holds no line ends and no zero bytes")
    head = _head(address, method, path, tuple([name for name, _ in headers])) % values
    # A request that could have a body says so when it has none.
    if body or method in ("POST", "PUT", "PATCH"):
        return b"%bcontent-length: %d\r\n\r\n" % (head, len(body))
    return head + b"\r\n"


@lru_cache(maxsize=256)
def _head(address: Address, method: str, path: str, names: tuple[bytes, ...]) -> bytes:
    """As ``_encode``, with a place for each value: the same for all requests of a kind."""
    if not VISIBLE.fullmatch(path) or not method.isalpha():
        raise ValueError("a method is letters, and a path holds no spaces, control or non-ASCII characters")
    if not all(map(TOKEN.fullmatch, names)):
        raise ValueError("a header's name is a token")
    lower = {name.lower() for name in names}
    if lower & OWN_HEADERS:
        raise ValueError("host, connection, content-length and transfer-encoding are the client's own headers")
    start = f"{method} {address.prefix}{path} HTTP/1.1\r\nhost: {address}\r\nconnection: keep-alive\r\n"
    if b"accept" not in lower:
        start += "accept: */*\r\n"
    return _literal(start.encode("ascii")) + b"".join(_literal(name) + b": %b\r\n" for name in names)


def _literal(text: bytes) -> bytes:
    """What stands for itself in a pattern for ``%``."""
    return text.replace(b"%", b"%%")
