"""llama-server's JSON: the same keys in the same order; a test holds them to the real one."""

import base64
import hashlib
import json
import math
import secrets
import struct
import time
from dataclasses import dataclass, field
from typing import Any

from fake.settings import Settings
from fake.slots import Task
from fake.text import Piece, message

Json = dict[str, Any]
BUILD = "b11434-fake"


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def error(status: int, kind: str, text: str, **more: object) -> Json:
    """An error as the engine makes it. (The HTTP layer's own have the keys in another order: ``http_error``.)"""
    return {"error": {"code": status, "message": text, "type": kind, **more}}


def http_error(status: int, kind: str, text: str) -> Json:
    return {"error": {"message": text, "type": kind, "code": status}}


LOADING = http_error(503, "unavailable_error", "Loading model")
NOT_FOUND = http_error(404, "not_found_error", "File Not Found")
BAD_KEY = http_error(401, "authentication_error", "Invalid API Key")


def usage(task: Task) -> Json:
    return {
        "completion_tokens": task.decoded,
        "prompt_tokens": task.prompt_tokens,
        "total_tokens": task.prompt_tokens + task.decoded,
        "prompt_tokens_details": {"cached_tokens": task.cached_tokens},
    }


def timings(task: Task) -> Json:
    """Times of one choice; the first token counts as made in no time, as in llama-server."""
    now = time.monotonic()
    prompt_n = task.prompt_tokens - task.cached_tokens if task.decode_from else 0
    prompt_ms = ((task.decode_from or now) - task.prefill_from) * 1000 if prompt_n else 0.0
    predicted_ms = max(0.001, (now - task.decode_from) * 1000) if task.decoded else 0.0
    intervals = task.decoded - 1
    return {
        "cache_n": task.cached_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else 0.0,
        "prompt_per_second": prompt_n / prompt_ms * 1000 if prompt_ms else 0.0,
        "predicted_n": task.decoded,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / intervals if intervals > 0 else 0.0,
        "predicted_per_second": intervals / predicted_ms * 1000 if intervals > 0 else 0.0,
    }


@dataclass
class Answer:
    """What all chunks of one reply have in common; ``chat`` tells the two endpoints apart."""

    chat: bool
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")

    def chunk(self, choices: list[Json], *, with_usage: Json | None = None, **tail: object) -> Json:
        """One chunk; chat and text put ``id`` and ``usage`` at different places."""
        made: Json = {"choices": choices, "created": int(time.time())}
        names: Json = {"model": self.model, "system_fingerprint": BUILD}
        spent = {"usage": with_usage} if with_usage else {}
        if self.chat:
            return made | {"id": self.id} | names | {"object": "chat.completion.chunk"} | spent | tail
        return made | names | {"object": "text_completion"} | spent | {"id": self.id} | tail

    def role(self, index: int) -> list[Json]:
        return [{"finish_reason": None, "index": index, "delta": {"role": "assistant", "content": None}}]

    def delta(self, index: int, piece: Piece | None, logprobs: Json | None) -> list[Json]:
        """The choices of a token's chunk, or, without a piece, of a text chunk that only tells of progress."""
        if not self.chat:
            text = piece.text if piece else ""
            return [{"text": text, "index": index, "logprobs": logprobs, "finish_reason": None}]
        choice: Json = {"finish_reason": None, "index": index, "delta": piece.delta if piece else {}}
        return [choice | ({"logprobs": logprobs} if logprobs else {})]

    def finish(self, task: Task) -> list[Json]:
        if self.chat:
            return [{"finish_reason": task.plan.finish, "index": task.index, "delta": {}}]
        return [{"text": "", "index": task.index, "logprobs": None, "finish_reason": task.plan.finish}]

    def whole(self, tasks: list[Task], *, logprobs: bool) -> Json:
        """The reply in one piece. Its usage and timings are those of the first choice only, as llama-server's are."""
        return {
            "choices": [self._choice(task, logprobs) for task in tasks],
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": BUILD,
            "object": "chat.completion" if self.chat else "text_completion",
            "usage": usage(tasks[0]),
            "id": self.id,
            "timings": timings(tasks[0]),
        }

    def _choice(self, task: Task, logprobs: bool) -> Json:
        pieces, finish = task.plan.pieces, task.plan.finish
        told = logprobs_of(list(pieces)) if logprobs else None
        if self.chat:
            choice: Json = {"finish_reason": finish, "index": task.index, "message": message(pieces)}
            return choice | ({"logprobs": told} if told else {})
        text = "".join(piece.text for piece in pieces)
        return {"text": text, "index": task.index, "logprobs": told, "finish_reason": finish}


def logprobs_of(pieces: list[Piece]) -> Json:
    return {"content": [_logprob(piece.text) for piece in pieces]}


def _logprob(text: str) -> Json:
    token = {"id": token_id(text), "token": text, "bytes": list(text.encode()), "logprob": -0.5}
    return {**token, "top_logprobs": [dict(token)]}


def token_id(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:2])


def embedding(settings: Settings, index: int, text: str, base64_wanted: bool) -> Json:
    """A unit vector that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    raw = [digest[i % len(digest)] - 127.5 for i in range(settings.dims)]
    length = math.sqrt(sum(x * x for x in raw))
    vector = [x / length for x in raw]
    if not base64_wanted:
        return {"embedding": vector, "index": index, "object": "embedding"}
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return {"embedding": packed, "index": index, "object": "embedding", "encoding_format": "base64"}
