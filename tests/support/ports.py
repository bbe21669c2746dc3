"""Ports for servers that tests start, and that nobody else gets before they listen or while they are away."""

import os
import random
import socket
from itertools import count

# The system gives clients ports from 32768 on (Linux) or 49152 on (macOS). Each process that runs tests has a part
# of those below to itself.
FIRST, PART, PARTS = 10_000, 2_000, 11
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))

_turns = count(random.randrange(PART))


def free_port() -> int:
    """A port that nobody listens on now, and that this process has not been given lately."""
    part = FIRST + PART * (WORKER % PARTS)
    return next(port for port in (part + turn % PART for turn in _turns) if _free(port))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        # A server that has just ended is no hindrance to another.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
