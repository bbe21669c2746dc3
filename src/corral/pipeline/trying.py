"""The attempts at one call: each at a replica that has room, until one succeeds or the next cannot help."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from corral.config import RetrySettings
from corral.core.breaker import blames
from corral.core.demand import Demand
from corral.core.errors import (
    ConnectFailed,
    ConnectionLost,
    RequestError,
    UpstreamError,
    UpstreamLoading,
    UpstreamRefused,
    UpstreamTimeout,
)
from corral.core.record import NO_USAGE, Record
from corral.core.retry import Tries
from corral.pipeline.answer import Answer
from corral.pipeline.explain import explain
from corral.pipeline.strand import Strand
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from corral.upstream.replica import Replica

T = TypeVar("T")
Attempt = Callable[[Lease, Record], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Persistence:
    """How attempts are repeated."""

    retries: RetrySettings
    clock: Callable[[], float]
    # A random number from 0 to 1, so that those who failed together do not come back together.
    jitter: Callable[[], float]
    # Told of each further attempt: the model and the code of the error behind it.
    on_retry: Callable[[str, str], None]


@dataclass(slots=True)
class Trying:
    """One call on its way. One writer: itself, in ``until_answered``.

    ``answer`` is told how it comes about; None for a part of one. ``strand`` is
    what is streamed: an attempt that breaks off leaves it to the next.
    """

    persistence: Persistence
    demand: Demand
    pool: Pool
    answer: Answer | None
    record: Record
    strand: Strand | None = None
    _tried: list[Replica] = field(default_factory=list)
    # What broke the answer off that the next attempt goes on with, instead of beginning it.
    _resuming: UpstreamError | None = None

    async def until_answered(self, attempt: Attempt[T]) -> T:
        """Attempts until one succeeds, the error is final, the rest cannot be asked for, or it takes too long."""
        tries: Tries | None = None
        while True:
            try:
                return await self._once(attempt)
            except RequestError as error:
                failure = self._resuming
                if failure is None or tries is None:
                    raise
                pause_s = self._pause_anew_s(failure, tries)
                if pause_s is None:
                    # It is no fault of the client's that the rest of its answer cannot be had.
                    raise failure from error
            except UpstreamError as error:
                tries = tries or Tries(self.persistence.retries)
                pause_s = self._pause_s(error, tries)
                if pause_s is None:
                    raise
                failure = error
            self.persistence.on_retry(self.pool.name, failure.code or "")
            await asyncio.sleep(pause_s)

    async def _once(self, attempt: Attempt[T]) -> T:
        record = self.record
        with await self.pool.lease(self._demand(), avoid=self._tried) as lease:
            leased_at = self._note(lease)
            if self.answer is not None:
                explain(self.answer, record)
            try:
                result = await attempt(lease, record)
                lease.failed = False
                return result
            except UpstreamRefused:
                # It works, and has found a fault of the client's.
                lease.failed = False
                raise
            except UpstreamError as error:
                self._tried.append(lease.replica)
                _blame(lease, error)
                raise
            finally:
                self._tell(lease, leased_at)

    def _demand(self) -> Demand:
        """What the next attempt asks for."""
        strand, demand = self.strand, self.demand
        if strand is None or strand.said is None:
            return demand
        return Demand(strand.call, demand.principal, demand.body_bytes + len(strand.said.text), returns=True)

    def _pause_s(self, error: UpstreamError, tries: Tries) -> float | None:
        """How long to wait before the next attempt; None when there is to be none."""
        strand = self.strand
        went_on = strand is not None and strand.went_on
        if strand is None or not self.persistence.retries.resumes or not strand.break_off():
            return self._pause_anew_s(error, tries)
        if self._resuming is None or went_on:
            self._resuming = error
        now, jitter = self.persistence.clock(), self.persistence.jitter()
        return tries.resume_s(error, now, jitter, strand.events, elsewhere=self._elsewhere())

    def _pause_anew_s(self, error: UpstreamError, tries: Tries) -> float | None:
        """The same where the next attempt cannot go on with what has come."""
        strand, now = self.strand, self.persistence.clock()
        if strand is not None:
            if self.demand.call.stream and strand.events:
                return None
            strand.begin()
        self._resuming = None
        # The time in the queue before the first is not the replicas' fault.
        began = self.record.leased_at or now
        return tries.retry_s(error, began, now, self.persistence.jitter(), elsewhere=self._elsewhere())

    def _elsewhere(self) -> bool:
        """A replica that has not been tried is ready."""
        return any(replica.ready for replica in self.pool.replicas if replica not in self._tried)

    def _note(self, lease: Lease) -> float:
        """An attempt begins; when that is."""
        now, record = self.persistence.clock(), self.record
        record.attempts += 1
        record.replica = lease.replica.name
        record.route_reason = lease.reason
        record.slots = lease.tasks
        if self._resuming is not None:
            return now
        record.token_events = 0
        record.first_byte_at = None
        record.usage = NO_USAGE
        if record.leased_at is None:
            record.leased_at = now
        return now

    def _tell(self, lease: Lease, leased_at: float) -> None:
        """What the attempt has taken, however it ended: its client's account and the replica's cache go by it."""
        record = self.record
        lease.usage = record.usage if self.strand is None else self.strand.attempt_usage
        if self._resuming is not None:
            # The marks are those of the attempt that began it.
            if self.strand is not None and self.strand.went_on:
                record.resumed += (self._resuming.code or "",)
            return
        if record.first_byte_at is not None:
            lease.prefill_s = record.first_byte_at - leased_at
        record.foreseen_tokens = lease.foreseen_tokens


def _blame(lease: Lease, error: UpstreamError) -> None:
    """Some errors say that the server itself is not well."""
    lease.failed = True if blames(error) else None
    connecting = isinstance(error, UpstreamTimeout) and error.phase == "connect"
    if connecting or isinstance(error, ConnectFailed | ConnectionLost | UpstreamLoading):
        lease.replica.suspect(error)
