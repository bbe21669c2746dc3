"""The way to Valkey: commands go in their order, many at a time, and come through again after it was away."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

log = logging.getLogger("corral")

# As many go in one batch at most: Valkey serves nobody else's commands between its scripts for less than 10 ms then.
BATCH = 200
# How long to wait before trying again.
PAUSE_S = 0.5
# What is to be told when Valkey is back; beyond that it is lost, and what it would have freed is freed by time.
KEPT = 100_000
# What Valkey refuses so often although it can be written to is wrong itself.
TRIES = 3
# What ends a connection. (uvloop says RuntimeError of one that is closed already; the last four are what
# the library makes of answers that no Valkey gives, or not to this.)
FAULTS = (RedisError, OSError, TimeoutError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
STALLS = (TimeoutError, RedisTimeoutError)


@dataclass(slots=True, eq=False)
class Command:
    """One run of a script. ``reply`` is None for what is kept until it has come through."""

    script: "Script"
    keys: Sequence[str]
    words: str
    reply: "asyncio.Future[Any] | None" = None
    # How often it was refused.
    refusals: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    """A script by its text and the digest that Valkey keeps it by."""

    text: str
    sha: str


class Away(Exception):
    """Valkey cannot be asked now. ``sent``: it may have done what it was asked, or do it yet."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


class Link:
    """One connection to a Valkey, Redis or cluster. One writer: the task in ``run``; others put commands in a queue."""

    def __init__(self, url: str, timeout_s: float, probe: Command, on_back: Callable[[], None]) -> None:
        """``probe`` is run to find out whether Valkey is there; ``on_back`` is called when it is, again."""
        self._url = _plain(url)
        self._timeout_s = timeout_s
        self._probe = probe
        self._on_back = on_back
        self._queue: deque[Command] = deque()
        self._wake = asyncio.Event()
        # Nothing is queued, and nothing on its way.
        self._idle = asyncio.Event()
        self._idle.set()
        self._client: Redis | RedisCluster | None = None
        self.away = False
        self.lost = 0

    async def ask(self, script: Script, keys: Sequence[str], words: str) -> Any:  # noqa: ANN401
        """What the script answers; raises Away."""
        if self.away:
            raise Away(sent=False)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(Command(script, keys, words, reply))
        return await reply

    def tell(self, script: Script, keys: Sequence[str], words: str) -> None:
        """Have the script run, after all that was asked before; when Valkey is away, as soon as it is back."""
        if len(self._queue) < KEPT:
            self._put(Command(script, keys, words))
            return
        self._lose("too much waits for it")

    def look(self) -> None:
        """Find out whether it is there, if nothing else is on its way to it."""
        if self._idle.is_set():
            self.tell(self._probe.script, self._probe.keys, self._probe.words)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            # Whoever starts it learns at once when it is not there.
            await self._find()
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._send_all()
                self._idle.set()
        finally:
            self._refuse(sent=True)
            await self._close()

    async def drain(self) -> None:
        """Wait until everything has come through, no longer than Valkey may take for an answer or two."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self._timeout_s):
                await self._idle.wait()

    def _put(self, command: Command) -> None:
        self._queue.append(command)
        self._idle.clear()
        self._wake.set()

    async def _send_all(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            try:
                results = await self._execute(batch)
            except FAULTS as error:
                self._keep(batch)
                await self._find(error)
                continue
            failed = [command for command, result in zip(batch, results, strict=True) if _finish(command, result)]
            if failed:
                self._keep([command for command in failed if self._may_retry(command)])
                await self._find(next(result for result in results if isinstance(result, RedisError)))

    def _may_retry(self, command: Command) -> bool:
        command.refusals += 1
        if command.reply is not None or command.refusals < TRIES:
            return True
        self._lose("it refuses a command")
        return False

    def _lose(self, why: str) -> None:
        if not self.lost:
            log.error("valkey is not told what was used", extra={"fields": {"reason": why}})
        self.lost += 1

    async def _execute(self, batch: list[Command]) -> list[Any]:
        """The answers, or the errors of single ones; raises what ends the connection."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                return await self._answers(await self._connected(), batch)
        finally:
            # The library writes with asyncio.wait_for, which loses a cancellation of that very moment (Python 3.11).
            if task is not None and task.cancelling():
                raise asyncio.CancelledError

    async def _answers(self, client: Redis | RedisCluster, batch: list[Command]) -> list[Any]:
        if isinstance(client, RedisCluster):
            return [await _one(client, command) for command in batch]
        pipeline = client.pipeline(transaction=False)
        for command in batch:
            pipeline.evalsha(command.script.sha, len(command.keys), *command.keys, command.words)
        results = await pipeline.execute(raise_on_error=False)
        # A server that was started anew does not know the script; those that failed for that have done nothing.
        return [
            await _whole(client, command) if isinstance(result, NoScriptError) else result
            for command, result in zip(batch, results, strict=True)
        ]

    async def _connected(self) -> Redis | RedisCluster:
        if self._client is not None:
            return self._client
        options: dict[str, Any] = {
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            # What was sent may have been done: whether to send it again is decided here.
            "retry": Retry(NoBackoff(), 0),
        }
        client = Redis.from_url(self._url, single_connection_client=False, max_connections=1, **options)
        try:
            clustered = (await client.info("cluster")).get("cluster_enabled")
        except BaseException:
            await client.aclose()
            raise
        if clustered:
            await client.aclose()
            self._client = RedisCluster.from_url(self._url, **options)
        else:
            self._client = client
        return self._client

    def _keep(self, batch: list[Command]) -> None:
        """Refuse those that somebody waits for; the others go first when it is back."""
        for command in reversed(batch):
            if command.reply is None:
                self._queue.appendleft(command)
            elif not command.reply.done():
                command.reply.set_exception(Away(sent=True))

    async def _find(self, error: BaseException | None = None) -> None:
        """Wait until Valkey is there; refuse whoever asks meanwhile. ``error`` is why it is looked for again."""
        await self._close()
        # A connection that has ended may only have been an old one. Who did not answer is not asked again at once.
        missing = error if isinstance(error, STALLS) else await self._missing()
        while missing is not None:
            if not self.away:
                self.away = True
                log.warning("valkey is away", extra={"fields": {"reason": type(missing).__name__}})
            self._refuse(sent=False)
            await self._close()
            await asyncio.sleep(PAUSE_S)
            missing = await self._missing()
        if self.away:
            self.away = False
            log.info("valkey is back", extra={"fields": {"waiting": len(self._queue)}})
        if error is not None:
            # It may have been started anew.
            self._on_back()

    async def _missing(self) -> BaseException | None:
        """Why it cannot be used."""
        try:
            (result,) = await self._execute([self._probe])
        except FAULTS as error:
            return error
        return result if isinstance(result, RedisError) else None

    def _refuse(self, *, sent: bool) -> None:
        waiting = [command for command in self._queue if command.reply is not None]
        self._queue = deque(command for command in self._queue if command.reply is None)
        for command in waiting:
            if command.reply is not None and not command.reply.done():
                command.reply.set_exception(Away(sent=sent))

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # What it says of its own end is of no interest.
            with suppress(*FAULTS):
                await client.aclose()


def _finish(command: Command, result: Any) -> bool:  # noqa: ANN401  (whatever a script answers)
    """Hand over the answer; True when there is none."""
    if isinstance(result, RedisError):
        return True
    if command.reply is not None and not command.reply.done():
        command.reply.set_result(result)
    return False


async def _one(client: RedisCluster, command: Command) -> Any:  # noqa: ANN401
    try:
        return await client.evalsha(command.script.sha, len(command.keys), *command.keys, command.words)
    except NoScriptError:
        return await _whole(client, command)


async def _whole(client: Redis | RedisCluster, command: Command) -> Any:  # noqa: ANN401
    """With its text, which the server then keeps."""
    return await client.eval(command.script.text, len(command.keys), *command.keys, command.words)


def _plain(url: str) -> str:
    """In the words of redis-py."""
    return "redis" + url.removeprefix("valkey") if url.startswith("valkey") else url
