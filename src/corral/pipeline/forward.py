"""Gets a call answered: waits for a slot, tries, and tries again where that can help."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from corral.config import RetrySettings
from corral.core.call import Call, Endpoint
from corral.core.demand import Demand
from corral.core.errors import InvalidRequest, Unavailable, UpstreamError, UpstreamTimeout
from corral.core.parts import part_inputs, part_ranges
from corral.core.principal import Principal
from corral.core.record import Record
from corral.core.usage import Usage
from corral.pipeline.answer import Answer
from corral.pipeline.attempt import Attempts
from corral.pipeline.deadline import Deadline
from corral.pipeline.explain import explain
from corral.pipeline.gather import Gathered
from corral.pipeline.relay import to_client
from corral.pipeline.strand import Strand
from corral.pipeline.trying import Persistence, Trying
from corral.pipeline.whole import Whole, merge
from corral.upstream.pool import Pool

# Parts of one call that run at once: each takes half of the slots.
PARTS_AT_ONCE = 2

JSON_HEADERS = [(b"content-type", b"application/json")]

# Names the model that answered in place of the one that was asked for.
FALLBACK_HEADER = b"x-corral-fallback"


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
    # Writes down what an answer took, before its last bytes go out.
    seal: Callable[[Record], None] = lambda _: None
    # The same for all calls; made of the above.
    persistence: Persistence = field(init=False)

    def __post_init__(self) -> None:
        persistence = Persistence(self.retries, self.attempts.clock, self.jitter, self.on_retry)
        object.__setattr__(self, "persistence", persistence)

    async def forward(self, call: Call, principal: Principal, pool: Pool, answer: Answer, record: Record) -> None:
        """Answer the call; raises the error that it ends in, and UpstreamTimeout when its time is up."""
        total_s = self.attempts.limits.of(pool.name, call.endpoint).total_s
        deadline = Deadline(total_s)
        try:
            with deadline:
                await self._forward_or_fall_back(Demand(call, principal, record.bytes_in), pool, answer, record)
        except TimeoutError:
            if not deadline.expired:
                raise
            raise UpstreamTimeout("total", total_s) from None

    async def _forward_or_fall_back(self, demand: Demand, pool: Pool, answer: Answer, record: Record) -> None:
        record.queued_at = self.attempts.clock()
        try:
            await self._forward(demand, pool, answer, record)
        except (Unavailable, UpstreamError):
            other = self.fallback(pool)
            if other is None or answer.started or not demand.principal.may_fall_back_to(other.name):
                raise
            record.model = other.name
            answer.headers.append((FALLBACK_HEADER, other.name.encode()))
            await self._forward(demand, other, answer, record)

    async def _forward(self, demand: Demand, pool: Pool, answer: Answer, record: Record) -> None:
        call = demand.call
        if call.inputs > 1 and not pool.slots:
            # A call is cut by the slots there are, which a first lease waits to know.
            with await pool.lease(_part(demand, range(1))):
                pass
        if call.stream:
            _ensure_streamable(call, pool)
            strand = Strand(call, partial(to_client, answer), on_end=partial(self._seal, record))
            trying = self._trying(demand, pool, answer, record, strand)
            await trying.until_answered(partial(self.attempts.relay, answer, strand))
            return
        size = part_inputs(call.inputs, call.n, pool.usable or pool.slots) if call.inputs > 1 else 1
        if size == call.inputs:
            whole = await self._whole(demand, pool, answer, record)
        else:
            whole = await self._in_parts(demand, size, pool, answer, record)
        self._seal(record, whole.usage)
        answer.send(200, JSON_HEADERS, whole.body)

    def _seal(self, record: Record, usage: Usage) -> None:
        # The status is what the client has read, or is about to.
        record.usage, record.status = usage, 200
        self.seal(record)

    async def _whole(self, demand: Demand, pool: Pool, answer: Answer | None, record: Record) -> Whole:
        """The reply in one piece; ``answer`` is None for a part of one."""
        if self.attempts.asked_whole(demand.call, record.bytes_in):
            return await self._trying(demand, pool, answer, record).until_answered(
                partial(self.attempts.whole, demand.call)
            )
        gathered = Gathered(demand.call.endpoint)
        strand = Strand(demand.call, gathered.open, folds=True)
        trying = self._trying(demand, pool, answer, record, strand)
        return await trying.until_answered(partial(self.attempts.gather, gathered, strand))

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
                replies[part.start] = await self._whole(_part(demand, part), pool, None, own)

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

    def _trying(
        self, demand: Demand, pool: Pool, answer: Answer | None, record: Record, strand: Strand | None = None
    ) -> Trying:
        return Trying(self.persistence, demand, pool, answer, record, strand)


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
    # Each has begun with what stands here already.
    before = len(record.resumed)
    record.resumed += tuple(reason for part in parts for reason in part.resumed[before:])
    record.replica, record.route_reason = next(
        ((part.replica, part.route_reason) for part in reversed(parts) if part.replica), ("", "")
    )
    record.leased_at = min((part.leased_at for part in parts if part.leased_at is not None), default=None)
    record.first_byte_at = min((part.first_byte_at for part in parts if part.first_byte_at is not None), default=None)
    record.last_token_at = max((part.last_token_at for part in parts if part.last_token_at is not None), default=None)
    # So many run at once.
    record.slots = PARTS_AT_ONCE * max((part.slots for part in parts), default=0)
    record.token_events = sum(part.token_events for part in parts)
    record.usage = sum((part.usage for part in parts), Usage())
