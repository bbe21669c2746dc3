"""Where an answer goes on: makes the stream of another replica the rest of the one that broke off."""

import re
from collections.abc import Iterator
from typing import Any

import orjson

from corral.core import sse
from corral.core.transcript import Said
from corral.core.usage import Usage

# At the start of a text: "<think>\n\n</think>\n\n", as most models write it; some have "[THINK]" or "<seed:think>".
EMPTY_THOUGHTS = re.compile(r"\A\s*(?:[<\[][^<>\[\]]{0,9}think[^<>\[\]]{0,9}[>\]]\s*){2}", re.IGNORECASE)


class Joint:
    """Reads the stream of the replica that goes on. One writer: the connection's callback, through ``read``.

    Its events come out as if the first replica had sent them: without what was
    said already, without a second role and without progress, under the same
    id, and with the usage of both together.
    """

    def __init__(self, said: Said, told: Said, tokens: int, prompt: Usage) -> None:
        """``told``: what comes once more of the answer; ``tokens``: how many those of ``said`` are.

        ``prompt``: what is known of the first prompt, its tokens and how many of them were cached.
        """
        # What was read last shows that the model is at work.
        self.alive = False
        # What this replica alone has done.
        self.usage = Usage(estimated=True)
        self._identity = said.identity
        self._tokens = tokens
        self._prompt = prompt
        # Thoughts that are told end where words begin: a template may add a line end to those that it repeats.
        self._thinks = not told.content
        self._splitter = sse.Splitter()
        self._seams = {
            "content": Seam(told.content),
            "text": Seam(told.content),
            "reasoning_content": Seam(told.reasoning),
        }

    def read(self, piece: bytes) -> bytes:
        """The events in ``piece`` that belong to the answer; raises BadReply when one is too large."""
        self.alive = False
        return b"".join(self._mended(event) for event in self._splitter.feed(piece))

    def _mended(self, event: bytes) -> bytes:
        data = sse.payload(event)
        if data is None or data == sse.DONE:
            return event
        try:
            chunk = orjson.loads(data)
            kept = self._keeps(chunk)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            # For the reader of all streams to complain of.
            return event
        return b"data: " + orjson.dumps(chunk) + b"\n\n" if kept else b""

    def _keeps(self, chunk: dict[str, Any] | None) -> bool:
        """Mend a chunk; False when nothing is left of it."""
        if chunk is None or "error" in chunk:
            return chunk is not None
        self.alive = True
        if progress := chunk.pop("prompt_progress", None):
            # With the first of these comes what is repeated.
            self.usage = Usage(progress["total"], progress["cache"], estimated=True)
        chunk |= {key: value for key, value in self._identity.items() if key in chunk}
        if isinstance(chunk.get("usage"), dict):
            chunk["usage"] = self._whole_usage(chunk["usage"])
            return True
        return any(self._has_more(choice) for choice in chunk["choices"]) or not (chunk["choices"] or progress)

    def _has_more(self, choice: dict[str, Any]) -> bool:
        """Take out of a choice what was said already; False when nothing is left."""
        holder = choice.get("delta", choice)
        if holder.pop("role", None) and holder.get("content") is None:
            holder.pop("content", None)
        for key, text in list(_texts(holder)):
            new = self._seams[key].after(text) if self._thinks or key != "reasoning_content" else ""
            if new or key == "text":
                holder[key] = new
            else:
                del holder[key]
        self._thinks = self._thinks or bool(holder.get("content"))
        more = bool(choice["finish_reason"]) or bool(choice.get("text") if holder is choice else holder)
        if more and not choice["finish_reason"]:
            self.usage += Usage(completion_tokens=1)
        return more

    def _whole_usage(self, told: dict[str, Any]) -> dict[str, Any]:
        """The usage of the answer: its first prompt, and the tokens that all replicas have made of it."""
        cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self.usage = Usage(told["prompt_tokens"], cached, told["completion_tokens"])
        prompt = self._prompt.prompt_tokens or max(0, told["prompt_tokens"] - self._tokens)
        completion = told["completion_tokens"] + self._tokens
        return told | {
            "completion_tokens": completion,
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": min(prompt, self._prompt.cached_tokens)},
        }


class Seam:
    """Finds where a text that begins with what was told becomes new. One writer: its joint.

    Some chat templates cut the blanks off a message: the answer then goes on
    behind what is left of it. Where thoughts come as words, llama-server
    repeats empty ones before a message that was given without.
    """

    def __init__(self, told: str) -> None:
        self._told = told
        # None when it has been found.
        self._came: str | None = "" if told else None

    def after(self, text: str) -> str:
        """What is new in ``text``, which comes next."""
        if self._came is None:
            return text
        came = self._came + text
        found = (_behind(self._told, each) for each in (EMPTY_THOUGHTS.sub("", came), came))
        # If there is none, it does not repeat it at all.
        new = next((each for each in found if each is not None), came)
        self._came = None if new else came
        return new


def _behind(told: str, came: str) -> str | None:
    """What has come behind the text that was told: nothing while that is still on its way; None if it is another."""
    bare, start = told.strip(), came.lstrip()
    if came.startswith(told):
        return came[len(told) :]
    if told.startswith(came) or bare.startswith(start):
        return ""
    if bare and start.startswith(bare):
        new = start[len(bare) :]
        return new.lstrip() if told[-1].isspace() else new
    return None


def _texts(holder: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return (
        (key, value) for key in ("content", "reasoning_content", "text") if isinstance(value := holder.get(key), str)
    )
