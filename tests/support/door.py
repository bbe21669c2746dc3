"""The two doors of Corral, and how each is opened."""

import sys
from collections.abc import Mapping
from enum import Enum

import pytest

# uvicorn's own way of everything that ``corral serve`` sets too.
UVICORN = (
    *("--factory", "corral.assembly:asgi", "--host", "127.0.0.1"),
    *("--loop", "uvloop", "--http", "httptools", "--ws", "none", "--lifespan", "on"),
    *("--no-access-log", "--no-server-header", "--no-proxy-headers", "--log-level", "warning"),
)


class Door(Enum):
    """APP: the ASGI application under a plain uvicorn. LANE: ``corral serve``, whose fast lane goes without ASGI."""

    APP = "app"
    LANE = "lane"

    def command(self, port: int, arguments: tuple[str, ...], settings: Mapping[str, str]) -> list[str]:
        """What starts it; only ``corral serve`` takes arguments."""
        if self is Door.LANE:
            return [sys.executable, "-m", "corral", "serve", "--port", str(port), *arguments]
        assert not arguments, "an ASGI server has its settings from the environment alone"
        # uvicorn has a limit of its own for what Corral calls its grace.
        grace_s = settings.get("CORRAL_SERVER_GRACE", "30s").removesuffix("s")
        return [
            *(sys.executable, "-m", "uvicorn", *UVICORN),
            *("--port", str(port), "--timeout-graceful-shutdown", grace_s),
        ]


# What only ``corral serve`` promises: bytes that are not a request (heads without end or end of line, smuggled
# requests), signals, start-up messages. An ASGI server reads heads and takes signals in its own way, which is neither
# ours nor our promise; for all of these the lane is the door that Corral opens to the world.
lane_only = pytest.mark.parametrize("door", [Door.LANE], ids=["lane"], indirect=True, scope="session")
