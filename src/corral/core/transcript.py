"""What a stream has said so far: enough to have another replica go on with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from corral.core import sse

# A longer text is not kept: it is some 200,000 tokens, and there may be thousands of streams.
KEPT_BYTES = 1024 * 1024
# So many texts of tokens are kept apart before they are put together: an object for each takes more than its text.
TEXTS_APART = 16
# So many chunks with the texts that followed are kept as they came: most streams have no more.
CHUNKS_APART = 4
# One that is larger than this stands alone.
LARGE_BYTES = 4096

# What a piece of an answer may hold, if another replica is to go on with it.
TEXTS = ("content", "reasoning_content")
DELTA = frozenset({"role", *TEXTS})
PIECE = frozenset({"index", "finish_reason", "logprobs", "delta", "text"})
# Of a chunk, what says which answer it is part of.
IDENTITY = ("id", "object", "created", "model", "system_fingerprint")


@dataclass(frozen=True, slots=True)
class Said:
    """The text of an answer that was begun, and how its chunks call it; ``finish`` when it has said why it ended."""

    content: str = ""
    reasoning: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)
    finish: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return self.reasoning + self.content


class Transcript:
    """Keeps what passes of a stream with one choice. One writer: the stream's reader.

    Costs next to nothing as long as nobody asks: chunks that differ in their
    text only come as their texts.
    """

    __slots__ = ("_content", "_finish", "_identity", "_lost", "_reasoning", "_rows", "_size", "_texts")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._identity: dict[str, Any] = {}
        self._finish: str | None = None
        # Whole chunks, each with the texts, as JSON without quotes, of those like it that followed.
        self._rows: list[tuple[bytes, list[bytes]]] = []
        # Those of the last one.
        self._texts: list[bytes] = []
        self._size = 0
        # It holds what cannot be gone on with, or too much.
        self._lost = False

    def chunk(self, event: bytes) -> None:
        """An event with a chunk has passed."""
        if self._lost:
            return
        if len(event) > KEPT_BYTES:
            self._lose()
            return
        if len(self._rows) == CHUNKS_APART or len(event) > LARGE_BYTES:
            self._put_away()
            if self._lost:
                return
        self._texts = []
        self._rows.append((event, self._texts))

    def texts(self, texts: Sequence[bytes]) -> None:
        """More chunks like the last have passed, with these texts."""
        if self._lost:
            return
        self._texts += texts
        if len(self._texts) > TEXTS_APART:
            self._texts[:] = [b"".join(self._texts)]
            if len(self._texts[0]) > KEPT_BYTES:
                self._lose()

    def text(self, text: bytes) -> None:
        """As ``texts``, for one."""
        if not self._lost:
            self._texts.append(text)
            if len(self._texts) > TEXTS_APART:
                self.texts(())

    def said(self) -> Said | None:
        """What was said so far; None when nobody can go on with it."""
        self._put_away()
        if self._lost:
            return None
        return Said("".join(self._content), "".join(self._reasoning), self._identity, self._finish)

    def _lose(self) -> None:
        self._lost = True
        self._content, self._reasoning, self._rows, self._texts = [], [], [], []

    def _put_away(self) -> None:
        """Take the chunks and those like them apart."""
        rows, self._rows, self._texts = self._rows, [], []
        try:
            for event, texts in rows:
                self._take(orjson.loads(sse.payload(event) or b""), orjson.loads(b'"%b"' % b"".join(texts)))
        except (LookupError, TypeError, ValueError, AttributeError):
            self._lose()
        if self._size > KEPT_BYTES:
            self._lose()

    def _take(self, chunk: dict[str, Any], more: str) -> None:
        (piece,) = chunk["choices"]
        delta = piece["delta"] if "delta" in piece else {"content": piece["text"]}
        if piece["index"] or piece.get("logprobs") or not (piece.keys() <= PIECE and delta.keys() <= DELTA):
            raise ValueError("nobody else can go on with this")
        if not self._identity:
            self._identity = {key: chunk[key] for key in IDENTITY if key in chunk}
        texts = [key for key in TEXTS if isinstance(delta.get(key), str)]
        if len(texts) > 1:
            raise ValueError("which of them the next ones add to cannot be told")
        key = texts[0] if texts else "content"
        text = (delta.get(key) or "") + more
        if text and key != "content" and any(self._content):
            raise ValueError("a message has its thoughts before its words")
        self._size += len(text)
        (self._content if key == "content" else self._reasoning).append(text)
        self._finish = piece["finish_reason"] or self._finish
