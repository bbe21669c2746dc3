"""Reads what the head of a GGUF file tells of the model's measures (ggml: docs/gguf.md)."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from corral.core.footprint import Anatomy

MAGIC = b"GGUF"
# The keys of the architecture stand at the beginning, before megabytes of vocabulary; what is farther is not read.
HEAD_BYTES = 2**20
# Magic, version, the numbers of tensors and of pairs.
PREAMBLE_BYTES = 24

STRING, ARRAY = 8, 9
# The numbers: u8, i8, u16, i16, u32, i32, f32, bool, u64, i64, f64.
FORMATS: Mapping[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}

Value = int | float | bool | str | list[int]


def anatomy_of(parts: tuple[Path, ...]) -> Anatomy:
    """The measures of the model in these files, of which the first has the metadata; files that are away count as 0."""
    told = read_metadata(parts[0])
    weights = sum(_bytes_of(part) for part in parts)
    architecture = told.get("general.architecture")

    def number(key: str) -> int | None:
        value = told.get(f"{architecture}.{key}")
        return value if isinstance(value, int) and value > 0 else None

    heads, width = number("attention.head_count"), number("embedding_length")
    head_length = width // heads if heads and width else None
    return Anatomy(
        weights_bytes=weights,
        kv_heads=_kv_heads(told.get(f"{architecture}.attention.head_count_kv"), heads, number("block_count")),
        key_length=number("attention.key_length") or head_length,
        value_length=number("attention.value_length") or head_length,
        context=number("context_length"),
    )


def read_metadata(file: Path) -> dict[str, Value]:
    """The key-value pairs at the beginning of the file; as far as they can be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError:
        return {}
    return {key: value for key, value in _pairs(head) if value is not None}


def _pairs(head: bytes) -> Iterator[tuple[str, Value | None]]:
    """Each key with its value, None for one of another kind; ends where the head cannot be read any further."""
    if head[:4] != MAGIC:
        return
    try:
        _, _, count = struct.unpack_from("<IQQ", head, len(MAGIC))
        at = PREAMBLE_BYTES
        for _ in range(count):
            key, at = _string(head, at)
            (kind,) = struct.unpack_from("<I", head, at)
            value, at = _value(head, at + 4, kind)
            yield key, value
    # The head ends within a value, or this is a kind of value that is not known.
    except (struct.error, KeyError, UnicodeDecodeError):
        return


def _value(head: bytes, at: int, kind: int) -> tuple[Value | None, int]:
    if kind == STRING:
        return _string(head, at)
    if kind == ARRAY:
        return _array(head, at)
    shape = FORMATS[kind]
    (value,) = struct.unpack_from(shape, head, at)
    return value, at + struct.calcsize(shape)


def _array(head: bytes, at: int) -> tuple[list[int] | None, int]:
    """An array of whole numbers; of other arrays only where they end."""
    kind, count = struct.unpack_from("<IQ", head, at)
    at += 12
    numbers: list[int] = []
    for _ in range(count):
        value, at = _value(head, at, kind)
        if isinstance(value, int):
            numbers.append(value)
    return numbers or None, at


def _string(head: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, at)
    end = at + 8 + length
    if end > len(head):
        raise struct.error("the string ends beyond the head")
    return head[at + 8 : end].decode(), end


def _kv_heads(told: Value | None, heads: int | None, layers: int | None) -> int | None:
    """Added up over the layers: one number is that of each layer, a list has them all, and none is as many as heads."""
    if isinstance(told, list):
        return sum(told)
    of_each = told if isinstance(told, int) and told > 0 else heads
    return of_each * layers if of_each and layers else None


def _bytes_of(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0
