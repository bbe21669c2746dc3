"""Reads the settings anew when their files change."""

import asyncio
from collections.abc import Awaitable, Callable

from corral.config.files import Files, marks_of, to_be_read

# Nobody waits for less after saving a file, and whoever writes one in pieces is done by then.
LOOK_INTERVAL_S = 1.0


async def watch(files: Files, reload: Callable[[], Awaitable[None]]) -> None:
    """Reload whenever files have changed and been still for one interval, until cancelled.

    Looks instead of being told: each system tells in another way, and network
    file systems do not tell at all. Settings that are refused are not tried
    again until a file changes.
    """
    before = files.read
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        now = await asyncio.to_thread(marks_of, files.read)
        if to_be_read(files.read, before, now):
            await reload()
        before = now
