"""The two seams of an exchange: what came in, and where the answer goes."""

from collections.abc import Callable
from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client left while its request was being read."""


class Inbound(Protocol):
    """A request whose head has been read and whose body has not."""

    headers: Headers

    async def body(self, limit_bytes: int, limit_s: float) -> bytes:
        """Read the body; raises BodyTooLarge, BodyTimeout or ClientGone."""


class Answer(Protocol):
    """Where the answer goes; all but ``flush`` is synchronous, and nothing fails when the client has left.

    ``headers`` are sent with the answer, whatever it turns out to be; they can
    be added to until it has started.
    """

    headers: Headers
    started: bool
    ended: bool
    gone: bool
    bytes_sent: int

    def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers of a stream."""

    def write(self, piece: bytes) -> None:
        """Send a piece of a started stream; what cannot be sent yet is kept, and ``pause`` is called."""

    def end(self) -> None:
        """The started stream is complete."""

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""

    def watch(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call ``pause`` when the client reads too slowly, ``resume`` when it has caught up."""

    async def flush(self) -> None:
        """Wait until the client has taken what was sent, but for a buffer's worth; ``gone`` says if it did not."""
