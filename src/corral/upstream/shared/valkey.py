"""The connection to the Valkey that several Corrals share. Imported only where one is set: so is redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as BrokenConnection
from redis.exceptions import NoScriptError, RedisError

from corral.config import ValkeySettings
from corral.upstream.shared.lost import ValkeyLost

# Valkey's own names of its schemes, which the library does not know.
SCHEMES = {"valkey://": "redis://", "valkeys://": "rediss://"}
# What a connection fails with; uvloop says RuntimeError of one that has just been closed, and the
# library one of the last four when it is told what no Valkey says, or not to this.
FAULTS = (RedisError, OSError, TimeoutError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class Script:
    """A Lua script. The server is sent its digest, and itself only when it does not know it yet."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Only a name.
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


class Valkey:
    """Runs scripts and listens to a channel. All errors are ValkeyLost, whose text holds nothing of the URL."""

    def __init__(self, settings: ValkeySettings) -> None:
        if settings.url is None:
            raise RuntimeError("no valkey.url is set")
        url = settings.url.get_secret_value()
        for own, known in SCHEMES.items():
            if url.startswith(own):
                url = known + url.removeprefix(own)
        self._timeout_s = settings.timeout_s
        # A connection that was closed while it was idle is no reason to give up.
        once_more = Retry(NoBackoff(), 1, supported_errors=(BrokenConnection,))
        limits: dict[str, Any] = {"socket_connect_timeout": settings.timeout_s, "decode_responses": True}
        self._commands = Redis.from_url(url, socket_timeout=settings.timeout_s, retry=once_more, **limits)
        # Who listens has to know when its connection is gone, and waits for as long as nothing is said.
        self._listening = Redis.from_url(url, socket_timeout=None, retry=Retry(NoBackoff(), 0), **limits)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:  # noqa: ANN401  (what the script returns)
        """What the script returns. It may have run although ValkeyLost is raised."""
        return await self._within_time(self._run(script, keys, arguments))

    async def start(self) -> tuple[str, float]:
        """What is another one after each start of the server, and how many seconds ago that was."""
        info = await self._within_time(self._commands.info("server"))
        return str(info.get("run_id", "")), float(info.get("uptime_in_seconds", 0.0))

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[AsyncIterator[str]]:
        """What is said in a channel from now on, until it cannot be heard any more: then ValkeyLost."""
        hearing = self._listening.pubsub(ignore_subscribe_messages=True)
        try:
            await self._within_time(hearing.subscribe(channel))
            # Its confirmation: what is said from now on is heard.
            await self._within_time(hearing.get_message(timeout=None))
            yield _heard(hearing)
        finally:
            with suppress(*FAULTS):
                await hearing.aclose()  # type: ignore[no-untyped-call]  # redis ships it so

    async def close(self) -> None:
        for each in (self._commands, self._listening):
            with suppress(*FAULTS):
                await each.aclose()

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:  # noqa: ANN401
        try:
            return await self._commands.evalsha(script.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._commands.eval(script.text, len(keys), *keys, *arguments)

    async def _within_time(self, answer: Awaitable[Any]) -> Any:  # noqa: ANN401  (whatever was asked for)
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except FAULTS as error:
            raise ValkeyLost(told(error)) from None
        finally:
            # The library writes with asyncio.wait_for, which loses a cancellation of that very moment (Python 3.11).
            if task is not None and task.cancelling() > cancelled:
                raise asyncio.CancelledError


async def _heard(hearing: Any) -> AsyncIterator[str]:  # noqa: ANN401  (PubSub is not typed)
    try:
        while True:
            message = await hearing.get_message(timeout=None)
            if message is not None:
                yield message["data"]
    except FAULTS as error:
        raise ValkeyLost(told(error)) from None


def told(error: Exception) -> str:
    """What kind of error it is; of the server's own words the first, which is a code: the rest may hold anything."""
    kind = type(error).__name__
    code = str(error).partition(" ")[0]
    return f"{kind} {code}" if code.isupper() and code.isalpha() else kind
