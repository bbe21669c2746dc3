"""The engine: slots, the tasks that run in them, and the deferred queue, which is unbounded as llama-server's is."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

from fake.settings import Settings
from fake.text import Piece, Plan


class Kind(Enum):
    """What a task tells the one who reads its results."""

    # The prompt starts to be processed.
    BEGUN = "begun"
    # Some of the prompt has been processed; only told when asked for.
    PROGRESS = "progress"
    TOKEN = "token"
    DONE = "done"


@dataclass(frozen=True)
class Result:
    kind: Kind
    task: "Task"
    piece: Piece | None = None
    processed: int = 0


@dataclass(eq=False)
class Task:
    """One answer being made, or one input being embedded. Its slot writes it; a reader may set ``cancelled``."""

    index: int
    plan: Plan
    prompt_tokens: int
    cached_tokens: int
    # Shared by all tasks of one request.
    results: "asyncio.Queue[Result]"
    stream: bool = False
    progress: bool = False
    # Another choice of the same prompt: it does not tell that the prompt begins.
    child: bool = False
    cancelled: bool = False
    id: int = -1
    decoded: int = 0
    prefill_from: float = 0.0
    decode_from: float = 0.0
    done_at: float = 0.0

    def tell(self, kind: Kind, piece: Piece | None = None, processed: int = 0) -> None:
        self.results.put_nowait(Result(kind, self, piece, processed))


@dataclass(eq=False)
class Slot:
    """``task`` is the last one it ran when ``busy`` is false."""

    id: int
    busy: bool = False
    task: Task | None = None


@dataclass
class Totals:
    """What ``/metrics`` counts."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_s: float = 0.0
    predicted_tokens: int = 0
    predicted_s: float = 0.0
    decodes: int = 0
    longest: int = 0


@dataclass(eq=False)
class Slots:
    """All slots and who waits for one. ``post`` and the end of a task are the only writers."""

    settings: Settings
    slots: list[Slot] = field(init=False)
    deferred: "deque[list[Task]]" = field(default_factory=deque)
    totals: Totals = field(default_factory=Totals)
    # The longest that the deferred queue has been: a gateway that knows the slots never makes anything wait here.
    most_deferred: int = 0

    def __post_init__(self) -> None:
        self.slots = [Slot(id) for id in range(self.settings.slots)]
        self._ids = count()
        self._running: set[asyncio.Task[None]] = set()

    @property
    def processing(self) -> int:
        return sum(slot.busy for slot in self.slots)

    def post(self, group: list[Task]) -> None:
        """Run these at once, when there is a slot for each; until then they are deferred, first come first served."""
        for task in group:
            task.id = next(self._ids)
        self.deferred.append(group)
        self._launch()
        self.most_deferred = max(self.most_deferred, len(self.deferred))

    def stop(self) -> None:
        """End all tasks and forget the deferred ones."""
        self.deferred.clear()
        for running in self._running:
            running.cancel()

    def _launch(self) -> None:
        while self.deferred and len(self.deferred[0]) <= len(self.slots) - self.processing:
            idle = [slot for slot in self.slots if not slot.busy]
            for slot, task in zip(idle, self.deferred.popleft(), strict=False):
                slot.busy, slot.task = True, task
                running = asyncio.get_running_loop().create_task(self._run(slot, task))
                self._running.add(running)
                running.add_done_callback(self._running.discard)

    async def _run(self, slot: Slot, task: Task) -> None:
        try:
            task.prefill_from = time.monotonic()
            await self._prefill(task)
            task.decode_from = time.monotonic()
            await self._decode(task)
        finally:
            task.done_at = time.monotonic()
            slot.busy = False
            self._count(task)
            self._launch()

    async def _prefill(self, task: Task) -> None:
        """Work through the prompt batch by batch; a cancelled task is let go only between two batches."""
        if not task.child:
            task.tell(Kind.PROGRESS if task.progress else Kind.BEGUN, processed=task.cached_tokens)
        ends = range(task.cached_tokens, task.prompt_tokens, self.settings.n_batch)
        for start in ends:
            await asyncio.sleep(self.settings.prefill_s / len(ends))
            if task.cancelled:
                return
            if task.progress:
                task.tell(Kind.PROGRESS, processed=min(start + self.settings.n_batch, task.prompt_tokens))

    async def _decode(self, task: Task) -> None:
        for piece in task.plan.pieces:
            if task.cancelled:
                return
            task.decoded += 1
            task.tell(Kind.TOKEN, piece)
            # Also without a pace: the reader gets its turn, and may cancel.
            await asyncio.sleep(self.settings.token_s)
        task.tell(Kind.DONE)

    def _count(self, task: Task) -> None:
        totals = self.totals
        totals.prompt_tokens += task.prompt_tokens - task.cached_tokens
        totals.cached_tokens += task.cached_tokens
        totals.predicted_tokens += task.decoded
        totals.decodes += task.decoded
        totals.longest = max(totals.longest, task.prompt_tokens + task.decoded)
        decode_from = task.decode_from or task.done_at
        totals.prompt_s += decode_from - task.prefill_from
        totals.predicted_s += task.done_at - decode_from
