"""What a real llama-server (xllamacpp 2026.10) answered: each request whole, as Corral asks it, and as clients do."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.core.call import Call, Endpoint

FILE = Path(__file__).with_name("llama_samples.json")


@dataclass(frozen=True)
class Sample:
    """One request, sent three times with the same seed."""

    name: str
    endpoint: Endpoint
    request: dict[str, Any]
    # The reply in one piece.
    whole: dict[str, Any]
    # The stream with `include_usage` and `return_progress`.
    asked: bytes
    # The stream with neither.
    plain: bytes

    @property
    def n(self) -> int:
        count: int = self.request.get("n", 1)
        return count

    @property
    def inputs(self) -> int:
        prompt = self.request.get("prompt")
        return len(prompt) if isinstance(prompt, list) else 1

    def call(self, *, model: str = "", include_usage: bool = False, include_progress: bool = False) -> Call:
        return Call(
            endpoint=self.endpoint,
            model=model,
            fields=self.request,
            stream=True,
            include_usage=include_usage,
            include_progress=include_progress,
            n=self.n,
            inputs=self.inputs,
            max_tokens=self.request["max_tokens"],
        )


def _read(told: dict[str, Any]) -> Sample:
    return Sample(
        name=told["name"],
        endpoint=Endpoint(told["endpoint"]),
        request=told["request"],
        whole=told["whole"],
        asked=told["asked_stream"].encode(),
        plain=told["plain_stream"].encode(),
    )


SAMPLES = [_read(told) for told in json.loads(FILE.read_text(encoding="utf-8"))]


def sample(name: str) -> Sample:
    return next(each for each in SAMPLES if each.name == name)


def events_of(stream: bytes) -> list[bytes]:
    """The events of a stream that ends with one."""
    return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]


def chunks_of(events: list[bytes]) -> list[dict[str, Any]]:
    """The JSON of those events that hold an object."""
    return [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]


def without_chance(event: bytes) -> bytes:
    """The event without what differs from one answer to the next: ids and times."""
    return re.sub(rb'"id":"[^"]+"|"created":\d+|"\w+_(ms|second)":[0-9.e+-]+', b"", event)
