"""Writes the beginning of a GGUF file, which is all that Corral reads of one."""

import struct
from collections.abc import Mapping
from pathlib import Path

STRING, ARRAY, U32, BOOL = 8, 9, 4, 7

Pair = int | bool | str | list[int] | list[str]


def write_gguf(file: Path, pairs: Mapping[str, Pair], *, size: int = 0) -> Path:
    """A file with these pairs, ``size`` bytes long if its head is shorter; what is behind the head takes no disk."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs))
    head += b"".join(_text(key) + _value(value) for key, value in pairs.items())
    with file.open("wb") as opened:
        opened.write(head)
        opened.truncate(max(size, len(head)))
    return file


def llama(layers: int = 2, heads: int = 4, kv_heads: int = 2, width: int = 32, context: int = 128) -> dict[str, Pair]:
    """The pairs of a small model."""
    return {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.embedding_length": width,
        "llama.context_length": context,
    }


def _value(value: Pair) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", U32, value)
        case str():
            return struct.pack("<I", STRING) + _text(value)
        case _:
            kind = STRING if value and isinstance(value[0], str) else U32
            items = (_text(item) if isinstance(item, str) else struct.pack("<I", item) for item in value)
            return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(items)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
