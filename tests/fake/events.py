"""The events of a stream, and how llama-server makes them of a task's results."""

from dataclasses import dataclass
from enum import Enum

from fake.shapes import Answer, Json, dump, logprobs_of, timings, usage
from fake.slots import Kind, Result, Task


class Sort(Enum):
    """What an event of a stream is."""

    NULL = "null"
    ROLE = "role"
    PROGRESS = "progress"
    DELTA = "delta"
    FINISH = "finish"
    USAGE = "usage"
    DONE = "done"
    FAULT = "fault"


@dataclass(frozen=True)
class Event:
    """One event of SSE. ``joined``: the next one leaves in the same HTTP chunk."""

    sort: Sort
    text: bytes
    joined: bool = False


def data(value: object) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


class Writer:
    """Turns results into events. Written by ``events``: who has been given a role."""

    def __init__(self, fields: Json, answer: Answer) -> None:
        options = fields.get("stream_options") or {}
        self._usage = bool(options.get("include_usage"))
        self._logprobs = bool(fields.get("logprobs"))
        self._timings = bool(fields.get("timings_per_token"))
        self._answer = answer
        self._roles: set[int] = set()

    def events(self, result: Result) -> list[Event]:
        return {Kind.BEGUN: self._begun, Kind.PROGRESS: self._progress, Kind.TOKEN: self._token, Kind.DONE: self._done}[
            result.kind
        ](result)

    def _begun(self, result: Result) -> list[Event]:
        return [Event(Sort.NULL, data(None))]

    def _progress(self, result: Result) -> list[Event]:
        task, answer = result.task, self._answer
        choices = answer.role(task.index) if answer.chat else answer.delta(task.index, None, None)
        progress = {
            "total": task.prompt_tokens,
            "cache": task.cached_tokens,
            "processed": result.processed,
            "time_ms": int(timings(task)["prompt_ms"]),
        }
        events = []
        if task.plan.repeats and task.index not in self._roles:
            self._roles.add(task.index)
            events.append(Event(Sort.ROLE, data(answer.chunk(choices)), joined=True))
            choices = [{**choices[0], "delta": task.plan.repeats}]
        told = answer.chunk(choices, **self._timed(task), prompt_progress=progress)
        return [*events, Event(Sort.PROGRESS, data(told))]

    def _token(self, result: Result) -> list[Event]:
        task, answer, piece = result.task, self._answer, result.piece
        events = []
        if answer.chat and task.index not in self._roles:
            self._roles.add(task.index)
            events.append(Event(Sort.ROLE, data(answer.chunk(answer.role(task.index))), joined=True))
        if piece is not None and (piece.delta or not answer.chat):
            told = logprobs_of([piece]) if self._logprobs else None
            chunk = answer.chunk(answer.delta(task.index, piece, told), **self._timed(task))
            events.append(Event(Sort.DELTA, data(chunk)))
        return events

    def _done(self, result: Result) -> list[Event]:
        task, answer = result.task, self._answer
        times = {"timings": timings(task)}
        finish = answer.finish(task)
        if not answer.chat:
            return [Event(Sort.FINISH, data(answer.chunk(finish, with_usage=usage(task), **times)))]
        if not self._usage:
            return [Event(Sort.FINISH, data(answer.chunk(finish, **times)))]
        return [
            Event(Sort.FINISH, data(answer.chunk(finish)), joined=True),
            Event(Sort.USAGE, data(answer.chunk([], with_usage=usage(task), **times))),
        ]

    def _timed(self, task: Task) -> Json:
        return {"timings": timings(task)} if self._timings else {}
