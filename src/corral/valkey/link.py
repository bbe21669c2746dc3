"""The way to Valkey: commands go in their order, many at a time, and come through again after it was away."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError, RedisError

from corral.valkey.client import FAULTS, STALLS, cancellation_kept, connecting, connecting_to_cluster, told
from corral.valkey.lost import ValkeyLost
from corral.valkey.script import Script

log = logging.getLogger("corral")

# As many go in one batch at most: Valkey serves nobody else's commands between its scripts for less than 10 ms then.
BATCH = 200
# So many turns of the loop are waited for before a batch: who has just been answered asks the next thing in the first,
# and whom that wakes in the second. One batch of two costs less than two.
TURNS = 2
# How long to wait before trying again.
PAUSE_S = 0.5
# What is to be told when Valkey is back; beyond that it is lost, and what it would have freed is freed by time.
KEPT = 100_000
# What Valkey refuses so often although it can be written to is wrong itself.
TRIES = 3
# One that cannot be written to is none.
PROBE = Script("redis.call('SET', KEYS[1], '1', 'PX', 1000) return 1")


@dataclass(slots=True, eq=False)
class Command:
    """One run of a script. ``reply`` is None for what is kept until it has come through."""

    script: Script
    keys: Sequence[str]
    words: Sequence[str]
    reply: "asyncio.Future[Any] | None" = None
    # It may run twice: it is sent once more when a connection ends.
    again: bool = False
    sent: bool = False
    # How often it was refused.
    refusals: int = 0

    @property
    def wanted(self) -> bool:
        """False when who has asked waits no more."""
        return self.reply is None or not self.reply.done()

    def refuse(self, why: str) -> None:
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(ValkeyLost(why, sent=self.sent))


class Link:
    """One connection to a Valkey, Redis or cluster. One writer: the task in ``run``; others put commands in a queue."""

    def __init__(self, url: str, timeout_s: float, prefix: str) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._probe = Command(PROBE, (f"{prefix}:probe",), ())
        self._on_back: list[Callable[[], None]] = []
        self._queue: deque[Command] = deque()
        self._wake = asyncio.Event()
        # Nothing is queued, and nothing on its way.
        self._idle = asyncio.Event()
        self._idle.set()
        # Somebody knows that it is there, or wants to.
        self._hurry = asyncio.Event()
        self._there = asyncio.Event()
        self._there.set()
        self._client: Redis | RedisCluster | None = None
        self._why = ""
        self.lost = 0

    @property
    def away(self) -> bool:
        """It cannot be asked now."""
        return not self._there.is_set()

    def on_back(self, call: Callable[[], None]) -> None:
        """Have it called whenever a connection has ended and there is another one: it may have been started anew."""
        self._on_back.append(call)

    async def ask(self, script: Script, keys: Sequence[str], words: Sequence[str], *, again: bool = False) -> Any:  # noqa: ANN401
        """What the script answers; raises ValkeyLost when there is no answer in time.

        ``again``: it does no harm twice, so that a connection which has ended
        while it was idle is no reason to give up.
        """
        if self.away:
            raise ValkeyLost(self._why)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        command = Command(script, keys, words, reply, again)
        self._put(command)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await reply
        except TimeoutError:
            raise ValkeyLost(TimeoutError.__name__, sent=command.sent) from None

    def tell(self, script: Script, keys: Sequence[str], words: Sequence[str]) -> None:
        """Have the script run, after all that was asked before; when Valkey is away, as soon as it is back."""
        if len(self._queue) < KEPT:
            self._put(Command(script, keys, words))
            return
        self._lose("too much waits for it")

    def look(self) -> None:
        """Find out whether it is there, if nothing else is on its way to it."""
        if self._idle.is_set():
            self.tell(self._probe.script, self._probe.keys, self._probe.words)

    async def found(self) -> None:
        """Wait until it is there, which is tried at once; raises ValkeyLost when it takes too long."""
        if not self.away:
            return
        self._hurry.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._there.wait()
        except TimeoutError:
            raise ValkeyLost(self._why) from None

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
            self._why = "the end"
            self._there.clear()
            self._refuse()
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
            for _ in range(TURNS):
                await asyncio.sleep(0)
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            batch = [command for command in batch if command.wanted]
            for command in batch:
                command.sent = True
            try:
                results = await self._execute(batch) if batch else []
            except FAULTS as error:
                self._keep(batch, error)
                await self._find(error)
                continue
            failed = [command for command, result in zip(batch, results, strict=True) if _finish(command, result)]
            if failed:
                self._keep([command for command in failed if self._may_retry(command)])
                await self._find(next(result for result in results if isinstance(result, RedisError)))

    def _may_retry(self, command: Command) -> bool:
        """Whether one that was refused, and that nobody waits for, goes again."""
        if command.reply is not None:
            return False
        command.refusals += 1
        if command.refusals < TRIES:
            return True
        self._lose("it refuses a command")
        return False

    def _lose(self, why: str) -> None:
        if not self.lost:
            log.error("valkey is not told what was used", extra={"fields": {"reason": why}})
        self.lost += 1

    async def _execute(self, batch: list[Command]) -> list[Any]:
        """The answers, or the errors of single ones; raises what ends the connection."""
        with cancellation_kept():
            async with asyncio.timeout(2 * self._timeout_s):
                return await self._answers(await self._connected(), batch)

    async def _answers(self, client: Redis | RedisCluster, batch: list[Command]) -> list[Any]:
        if isinstance(client, RedisCluster):
            return [await _one(client, command) for command in batch]
        pipeline = client.pipeline(transaction=False)
        for command in batch:
            pipeline.evalsha(command.script.digest, len(command.keys), *command.keys, *command.words)
        results = await pipeline.execute(raise_on_error=False)
        # A server that was started anew does not know the script; those that failed for that have done nothing.
        return [
            await _whole(client, command) if isinstance(result, NoScriptError) else result
            for command, result in zip(batch, results, strict=True)
        ]

    async def _connected(self) -> Redis | RedisCluster:
        if self._client is not None:
            return self._client
        client = connecting(self._url, self._timeout_s, self._timeout_s)
        try:
            clustered = (await client.info("cluster")).get("cluster_enabled")
        except BaseException:
            await client.aclose()
            raise
        if clustered:
            await client.aclose()
            self._client = connecting_to_cluster(self._url, self._timeout_s)
        else:
            self._client = client
        return self._client

    def _keep(self, batch: list[Command], error: BaseException | None = None) -> None:
        """What nobody waits for goes first when it is back, and once more what may; ``error`` refuses the rest."""
        for command in reversed(batch):
            if command.reply is None or command.again:
                command.again = False
                self._queue.appendleft(command)
            elif error is not None:
                command.refuse(told(error))

    async def _find(self, error: BaseException | None = None) -> None:
        """Wait until Valkey is there; refuse whoever asks meanwhile. ``error`` is why it is looked for again."""
        await self._close()
        # A connection that has ended may only have been an old one. Who did not answer is not asked again at once.
        missing = error if isinstance(error, STALLS) else await self._missing()
        while missing is not None:
            self._why = told(missing)
            if not self.away:
                self._there.clear()
                log.warning("valkey is away", extra={"fields": {"reason": self._why}})
            self._refuse()
            await self._close()
            await self._pause()
            missing = await self._missing()
        if self.away:
            self._there.set()
            log.info("valkey is back", extra={"fields": {"waiting": len(self._queue)}})
        if error is not None:
            # It may have been started anew.
            for call in self._on_back:
                call()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S):
                await self._hurry.wait()
        self._hurry.clear()

    async def _missing(self) -> BaseException | None:
        """Why it cannot be used."""
        try:
            (result,) = await self._execute([self._probe])
        except FAULTS as error:
            return error
        return result if isinstance(result, RedisError) else None

    def _refuse(self) -> None:
        """Whoever waits."""
        waiting, self._queue = self._queue, deque(command for command in self._queue if command.reply is None)
        for command in waiting:
            command.refuse(self._why)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # What it says of its own end is of no interest.
            with suppress(*FAULTS):
                await client.aclose()


def _finish(command: Command, result: Any) -> bool:  # noqa: ANN401  (whatever a script answers)
    """Hand over the answer, or its refusal; True when there is none."""
    if isinstance(result, RedisError):
        command.refuse(told(result))
        return True
    if command.reply is not None and not command.reply.done():
        command.reply.set_result(result)
    return False


async def _one(client: RedisCluster, command: Command) -> Any:  # noqa: ANN401
    try:
        return await client.evalsha(command.script.digest, len(command.keys), *command.keys, *command.words)
    except NoScriptError:
        return await _whole(client, command)


async def _whole(client: Redis | RedisCluster, command: Command) -> Any:  # noqa: ANN401
    """With its text, which the server then keeps."""
    return await client.eval(command.script.text, len(command.keys), *command.keys, *command.words)
