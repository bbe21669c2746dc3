"""Hears what is said in a channel of Valkey, with a connection of its own: one that listens can ask nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any

from corral.valkey.client import FAULTS, cancellation_kept, connecting, told
from corral.valkey.lost import ValkeyLost


class Listener:
    """Has no state but where Valkey is; each ``listen`` is another connection. All errors are ValkeyLost."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[AsyncIterator[str]]:
        """What is said in a channel from now on, until it cannot be heard any more: then ValkeyLost."""
        # Who listens has to know when its connection is gone, and waits for as long as nothing is said.
        client = connecting(self._url, self._timeout_s, None)
        hearing = client.pubsub(ignore_subscribe_messages=True)
        try:
            await self._within_time(hearing.subscribe(channel))
            # Its confirmation: what is said from now on is heard.
            await self._within_time(hearing.get_message(timeout=None))
            yield _heard(hearing)
        finally:
            for close in (hearing.aclose, client.aclose):
                with suppress(*FAULTS):
                    await close()

    async def _within_time(self, answer: Awaitable[Any]) -> None:
        try:
            with cancellation_kept():
                async with asyncio.timeout(self._timeout_s):
                    await answer
        except FAULTS as error:
            raise ValkeyLost(told(error)) from None


async def _heard(hearing: Any) -> AsyncIterator[str]:  # noqa: ANN401  (PubSub is not typed)
    try:
        while True:
            message = await hearing.get_message(timeout=None)
            if message is not None:
                yield message["data"].decode(errors="replace")
    except FAULTS as error:
        raise ValkeyLost(told(error)) from None
