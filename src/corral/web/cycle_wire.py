"""What uvicorn's own cycle sees of its connection."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corral.web.protocol import Protocol


class CycleWire:
    """The transport of a cycle: to close it is left to the connection, which knows whether the client still sends."""

    def __init__(self, protocol: "Protocol") -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        """Close at once when the cycle's answer is not complete; else ``on_response_complete`` comes, or has come."""
        self._protocol.cut(self)
