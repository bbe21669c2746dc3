"""Which part of a prompt a llama-server has in its cache, as far as one can tell from outside.

A prompt becomes a chain of hashes, each of one block and of all before it, so
that two prompts share as many hashes as they share blocks from their start on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from corral.core.call import Call, Endpoint

# Sixty tokens of English, about: a shorter block tells more exactly what is shared and takes more hashes.
BLOCK_BYTES = 256
# What is compared of a prompt: beyond half a MiB another block decides nothing.
MAX_BLOCKS = 2048
# What is remembered of each replica: 4 MiB of prompts, more than most llama-servers can keep.
INDEX_BLOCKS = 16_384

# What a template puts before the messages, or what changes how it writes them.
BEFORE_MESSAGES = ("tools", "chat_template_kwargs", "reasoning_effort")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is compared: its length, and the hashes of its whole blocks."""

    size_bytes: int
    chain: tuple[int, ...]


def is_compared(call: Call) -> bool:
    """The call has one prompt, and it is cached: not so embeddings."""
    return call.endpoint is not Endpoint.EMBEDDINGS and call.inputs == 1


def prompt_of(call: Call) -> Prompt:
    """The prompt of a call that ``is_compared``."""
    return chained(_text(call))


def chained(text: bytes) -> Prompt:
    """The chain of a text. Its hashes mean something in this process only."""
    chain: list[int] = []
    before = 0
    for start in range(0, min(len(text) // BLOCK_BYTES, MAX_BLOCKS) * BLOCK_BYTES, BLOCK_BYTES):
        before = hash((before, text[start : start + BLOCK_BYTES]))
        chain.append(before)
    return Prompt(len(text), tuple(chain))


def _text(call: Call) -> bytes:
    """The prompt in the order in which the model's template will write it, and the same for all who ask the same."""
    fields = call.fields
    if call.endpoint is Endpoint.COMPLETIONS:
        return _json(fields.get("prompt"))
    before = {name: fields[name] for name in BEFORE_MESSAGES if name in fields}
    return (_json(before) if before else b"") + b"".join(map(_json, fields.get("messages", ())))


def _json(value: Any) -> bytes:  # noqa: ANN401  (JSON)
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


class PrefixIndex:
    """The blocks that one replica has read, those read last at most. One writer: the pool.

    A block is newer than all that follow it in its chain, so that what is
    forgotten first is the end of a prompt.
    """

    def __init__(self, capacity: int = INDEX_BLOCKS) -> None:
        self._capacity = capacity
        # When each block was read last, the oldest first.
        self._read: dict[int, int] = {}
        self.now = 0

    def __len__(self) -> int:
        return len(self._read)

    def matched(self, prompt: Prompt) -> int:
        """How many blocks from the start on have been read."""
        read = self._read
        for count, block in enumerate(prompt.chain):
            if block not in read:
                return count
        return len(prompt.chain)

    def learn(self, prompt: Prompt) -> None:
        """The replica has read the prompt just now."""
        for block in reversed(prompt.chain[: self._capacity]):
            self.now += 1
            self._read.pop(block, None)
            self._read[block] = self.now
        while len(self._read) > self._capacity:
            del self._read[next(iter(self._read))]

    def correct(self, missed: Sequence[int], since: int) -> None:
        """These blocks, which were there at ``since`` (``now`` of then), turned out not to be cached.

        A cache gives up what was read longest ago, so what is older than the
        newest of them is gone too. Blocks that were read again meanwhile say nothing.
        """
        stamps = [stamp for block in missed if (stamp := self._read.get(block, 0)) and stamp <= since]
        newest = max(stamps, default=0)
        while self._read and self._read[oldest := next(iter(self._read))] <= newest:
            del self._read[oldest]

    def clear(self) -> None:
        """The process behind it is another one."""
        self._read.clear()
