"""The faults: what there is, how one is written, and which request gets which.

A fault is written ``kind,key=value,…`` on the command line and ``{"kind": …, key: value}`` in ``POST /fake/faults``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fake.connection import Request

# At the door: before there is a connection. They last for ``seconds``, or until reset.
AT_THE_DOOR = {
    "refuse": "the port is closed: connecting is refused",
    "connect_hang": "the accept queue is full: connecting hangs",
}
# Instead of a reply.
INSTEAD = {
    "silence": "accepts the request and says nothing; with `seconds`, answers after them",
    "head_then_silence": "sends the headers of the reply and then nothing",
    "loading": "503 'Loading model'",
    "status": "answers `status` with a `body` of json, text, html or empty, and Retry-After: `retry_after`",
    "head_cut": "sends half of the headers, then FIN",
    "garbage": "answers with something that is not HTTP",
    "close": "FIN before any byte",
    "reset": "RST before any byte",
    "reset_on_reuse": "RST before any byte, from the second request of a connection on",
}
# Within a stream, when `after` events have been sent. A whole reply breaks off in the middle of its body.
BREAKS = {
    "rst": "RST",
    "fin": "FIN, with neither a finish_reason nor the last HTTP chunk",
    "truncate": "ends the HTTP reply in good order, with neither a finish_reason nor [DONE]",
    "die": "the process exits at once",
}
# Streams only.
IN_THE_STREAM = {
    "malformed": "after `after` events, a line of SSE that is broken JSON; the stream goes on",
    "error_event": "after `after` events, an error event, and the end without [DONE]",
    "stall": "after `after` events, silence for `seconds`; then the stream goes on",
    "huge": "after `after` events, a delta of `size` bytes; the stream goes on",
    "no_usage": "usage is missing",
    "no_done": "[DONE] is missing",
    "double_finish": "the chunk with finish_reason comes twice",
    "pings": "SSE comments before the first event and between events",
    "crlf": "lines end in CRLF",
}
# The bytes of any reply.
ON_THE_WIRE = {
    "wrong_type": "the content-type is `type`",
    "trickle": "`size` bytes at a time, `seconds` apart; size=1 is a byte at a time",
    "split": "each write in two segments, `seconds` apart",
    "one_segment": "the whole reply in a single write",
}
KINDS = AT_THE_DOOR | INSTEAD | BREAKS | IN_THE_STREAM | ON_THE_WIRE

INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MIB = 1024 * 1024


@dataclass
class Fault:
    """One fault and whom it strikes. Written by ``FaultBook.take`` (``skip``, ``times``)."""

    kind: str
    # Strikes so many requests; ``None``: all.
    times: int | None = None
    # Lets so many matching requests pass first.
    skip: int = 0
    # Strikes this path only; "*": every one; empty: the inference endpoints.
    path: str = ""
    after: int = 0
    seconds: float | None = None
    size: int = 0
    status: int = 500
    body: str = "json"
    retry_after: str = ""
    type: str = "text/html"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault '{self.kind}'; there are: {', '.join(KINDS)}")
        if not self.size:
            self.size = MIB if self.kind == "huge" else 1

    def strikes(self, request: Request) -> bool:
        if self.kind == "reset_on_reuse" and request.nth == 1:
            return False
        return self.path == "*" or request.path in ((self.path,) if self.path else INFERENCE)


def parse(text: str) -> Fault:
    """``kind,key=value,…``; raises ``ValueError``."""
    kind, *pairs = text.split(",")
    return from_mapping({"kind": kind} | {key: value for key, _, value in (pair.partition("=") for pair in pairs)})


def from_mapping(given: Mapping[str, Any]) -> Fault:
    """Values may be texts; raises ``ValueError`` for a key or kind there is not."""
    if unknown := given.keys() - CONVERT.keys():
        raise ValueError(f"no key {sorted(unknown)} in a fault; there are: {', '.join(CONVERT)}")
    converted: dict[str, Any] = {key: CONVERT[key](value) for key, value in given.items() if value is not None}
    return Fault(**converted)


CONVERT = {field.name: str for field in fields(Fault)} | {
    "times": int, "skip": int, "after": int, "size": int, "status": int, "seconds": float,
}  # fmt: skip


class FaultBook:
    """The faults in force. Written by the control routes; ``take`` counts them down."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults

    def take(self, request: Request) -> list[Fault]:
        """The faults that strike this request."""
        return [fault for fault in self.faults if fault.strikes(request) and self._counts_down(fault)]

    def told(self) -> list[dict[str, Any]]:
        """Those that may still strike, as JSON."""
        return [asdict(fault) for fault in self.faults if fault.times != 0]

    def _counts_down(self, fault: Fault) -> bool:
        if fault.times == 0:
            return False
        if fault.skip:
            fault.skip -= 1
            return False
        if fault.times is not None:
            fault.times -= 1
        return True
