"""Gets a call answered: waits for a slot, tries, and tries again where that can help."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from corral.config import RetrySettings
from corral.core.breaker import blames
from corral.core.call import Call, Endpoint
from corral.core.demand import Demand
from corral.core.errors import (
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    Unavailable,
    UpstreamError,
    UpstreamLoading,
    UpstreamRefused,
    UpstreamTimeout,
)
from corral.core.parts import part_inputs, part_ranges
from corral.core.principal import Principal
from corral.core.record import NO_USAGE, Record
from corral.core.retry import next_delay
from corral.core.usage import Usage
from corral.pipeline.answer import Answer
from corral.pipeline.attempt import Attempts
from corral.pipeline.deadline import Deadline
from corral.pipeline.explain import explain
from corral.pipeline.whole import Whole, merge
from corral.upstream.pool import Pool
from corral.upstream.replica import Lease, Replica

# Parts of one call that run at once: each takes half of the slots.
PARTS_AT_ONCE = 2

JSON_HEADERS = [(b"content-type", b"application/json")]

# Names the model that answered in place of the one that was asked for.
FALLBACK_HEADER = b"x-corral-fallback"

T = TypeVar("T")
Attempt = Callable[[Lease, Call, Record], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Forwarder:
    """Forwards calls; holds nothing of them."""

    attempts: Attempts
    retries: RetrySettings
    # A random number from 0 to 1, so that those who failed together do not come back together.
    jitter: Callable[[], float]
    # Told of each retry: the model and the code of the error behind it.
    on_retry: Callable[[str, str], None]
    # What answers when nothing of a pool can, if there is such a one.
    fallback: Callable[[Pool], Pool | None] = lambda _: None

    async def forward(self, call: Call, principal: Principal, pool: Pool, answer: Answer, record: Record) -> None:
        """Answer the call; raises the error that it ends in, and UpstreamTimeout when its time is up."""
        total_s = self.attempts.timeouts.of(call.endpoint).total_s
        deadline = Deadline(total_s)
        try:
            with deadline:
                try:
                    await self._forward(Demand(call, principal, record.bytes_in), pool, answer, record)
                except (Unavailable, UpstreamError):
                    other = self.fallback(pool)
                    if other is None or answer.started:
                        raise
                    record.model = other.name
                    answer.headers.append((FALLBACK_HEADER, other.name.encode()))
                    await self._forward(Demand(call, principal, record.bytes_in), other, answer, record)
        except TimeoutError:
            if not deadline.expired:
                raise
            raise UpstreamTimeout("total", total_s) from None

    async def _forward(self, demand: Demand, pool: Pool, answer: Answer, record: Record) -> None:
        call = demand.call
        record.queued_at = self.attempts.clock()
        if call.inputs > 1 and not pool.slots:
            # A call is cut by the slots there are, which a first lease waits to know.
            with await pool.lease(_part(demand, range(1))):
                pass
        if call.stream:
            _ensure_streamable(call, pool)
            await self._try(demand, pool, answer, record, partial(self.attempts.relay, answer))
            return
        size = part_inputs(call.inputs, call.n, pool.slots) if call.inputs > 1 else 1
        if size == call.inputs:
            whole = await self._try(demand, pool, answer, record, self.attempts.whole)
        else:
            whole = await self._in_parts(demand, size, pool, answer, record)
        record.usage = whole.usage
        answer.send(200, JSON_HEADERS, whole.body)

    async def _in_parts(self, demand: Demand, size: int, pool: Pool, answer: Answer, record: Record) -> Whole:
        """Let the parts of a large call take their turns in the queue, and put their replies together."""
        call = demand.call
        ranges = part_ranges(call.inputs, size)
        replies: dict[int, Whole] = {}
        records: list[Record] = []
        todo = iter(ranges)

        async def work() -> None:
            for part in todo:
                # Each has marks of its own: those of parts that run at once would overwrite one another.
                records.append(own := replace(record))
                replies[part.start] = await self._try(_part(demand, part), pool, None, own, self.attempts.whole)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(PARTS_AT_ONCE):
                    tasks.create_task(work(), name="corral-part")
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            _sum_up(records, record)
        explain(answer, record)
        starts = [part.start for part in ranges]
        return merge([replies[start] for start in starts], starts, call)

    async def _try(self, demand: Demand, pool: Pool, answer: Answer | None, record: Record, attempt: Attempt[T]) -> T:
        """Attempts until one succeeds, the error is final, tokens have reached the client, or it takes too long.

        ``answer`` is told how it comes about; None for a part of one.
        """
        call = demand.call
        tried: list[Replica] = []
        while True:
            with await pool.lease(demand, avoid=tried) as lease:
                leased_at = self._note(record, lease)
                if answer is not None:
                    explain(answer, record)
                try:
                    result = await attempt(lease, call, record)
                    lease.failed = False
                    return result
                except UpstreamRefused:
                    # It works, and has found a fault of the client's.
                    lease.failed = False
                    raise
                except UpstreamError as error:
                    tried.append(lease.replica)
                    _blame(lease, error)
                    elsewhere = any(replica.ready for replica in pool.replicas if replica not in tried)
                    # The time in the queue before the first is not the replicas' fault.
                    spent_s = self.attempts.clock() - (record.leased_at or leased_at)
                    pause_s = next_delay(error, len(tried), spent_s, self.retries, self.jitter(), elsewhere=elsewhere)
                    if pause_s is None or (call.stream and record.token_events):
                        raise
                    failure = error
                finally:
                    _tell(lease, record, leased_at)
            self.on_retry(pool.name, failure.code or "")
            await asyncio.sleep(pause_s)

    def _note(self, record: Record, lease: Lease) -> float:
        """An attempt begins; when that is."""
        now = self.attempts.clock()
        record.attempts += 1
        record.replica = lease.replica.name
        record.route_reason = lease.reason
        record.token_events = 0
        record.first_byte_at = None
        record.usage = NO_USAGE
        if record.leased_at is None:
            record.leased_at = now
        return now


def _ensure_streamable(call: Call, pool: Pool) -> None:
    if call.inputs > 1 and 0 < pool.slots < call.tasks:
        raise InvalidRequest(
            f"a stream takes at most {pool.slots // call.n} prompts of this model; send fewer, or ask without 'stream'",
            param="prompt",
            code="invalid_value",
        )


def _part(demand: Demand, part: range) -> Demand:
    call = demand.call
    key = "input" if call.endpoint is Endpoint.EMBEDDINGS else "prompt"
    inputs = call.fields[key][part.start : part.stop]
    cut = replace(call, fields={**call.fields, key: inputs}, inputs=len(inputs))
    return Demand(cut, demand.principal, demand.body_bytes)


def _sum_up(parts: list[Record], record: Record) -> None:
    """What the parts of a call have noted: the first of their first marks, the last of the last."""
    record.attempts = max((part.attempts for part in parts), default=0)
    record.replica, record.route_reason = next(
        ((part.replica, part.route_reason) for part in reversed(parts) if part.replica), ("", "")
    )
    record.leased_at = min((part.leased_at for part in parts if part.leased_at is not None), default=None)
    record.first_byte_at = min((part.first_byte_at for part in parts if part.first_byte_at is not None), default=None)
    record.last_token_at = max((part.last_token_at for part in parts if part.last_token_at is not None), default=None)
    record.token_events = sum(part.token_events for part in parts)
    record.usage = sum((part.usage for part in parts), Usage())


def _blame(lease: Lease, error: UpstreamError) -> None:
    """Some errors say that the server itself is not well."""
    lease.failed = True if blames(error) else None
    connecting = isinstance(error, UpstreamTimeout) and error.phase == "connect"
    if connecting or isinstance(error, ConnectFailed | ConnectionLost | UpstreamLoading):
        lease.replica.suspect(error)


def _tell(lease: Lease, record: Record, leased_at: float) -> None:
    """What the attempt has taken, however it ended: its client's account and the replica's cache go by it."""
    lease.usage = record.usage
    if record.first_byte_at is not None:
        lease.prefill_s = record.first_byte_at - leased_at
    record.foreseen_tokens = lease.foreseen_tokens
