"""How much memory a llama-server takes for a model: its weights, its KV cache, and what else it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Bits of one value in the KV cache, by llama.cpp's name of the type (ggml: blocks of 32 values with their scales).
CACHE_BITS: Mapping[str, float] = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}
DEFAULT_CACHE_TYPE = "f16"

CONTEXT_ARGUMENTS = frozenset({"-c", "--ctx-size"})
KEY_TYPE_ARGUMENTS = frozenset({"-ctk", "--cache-type-k"})
VALUE_TYPE_ARGUMENTS = frozenset({"-ctv", "--cache-type-v"})


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one llama-server will take."""

    bytes: int
    # The operator says so: that counts, and what the system tells does not.
    told: bool = False


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What a model's files tell of its size; ``kv_heads`` and the lengths are None where they do not."""

    weights_bytes: int
    # KV heads of each layer, added up.
    kv_heads: int | None = None
    key_length: int | None = None
    value_length: int | None = None
    context: int | None = None


def estimate_bytes(anatomy: Anatomy, ctx: int | None, extra_args: Sequence[str], margin_bytes: int) -> int:
    """What one llama-server will take; without its measures only the weights and the margin.

    A context of 0, or a ``ctx`` of None, is the model's own. As llama-server does, the last of
    repeated arguments counts, and ``extra_args`` come after ``ctx``.
    """
    said = _last(extra_args, CONTEXT_ARGUMENTS)
    if said is not None and said.isdecimal():
        ctx = int(said)
    context = ctx or anatomy.context or 0
    return anatomy.weights_bytes + kv_bytes(anatomy, context, extra_args) + margin_bytes


def kv_bytes(anatomy: Anatomy, context: int, extra_args: Sequence[str] = ()) -> int:
    """The KV cache: of each token in the context a key and a value for each KV head of each layer."""
    if anatomy.kv_heads is None or anatomy.key_length is None or anatomy.value_length is None:
        return 0
    key_bits = anatomy.key_length * _bits(_last(extra_args, KEY_TYPE_ARGUMENTS))
    value_bits = anatomy.value_length * _bits(_last(extra_args, VALUE_TYPE_ARGUMENTS))
    return int(context * anatomy.kv_heads * (key_bits + value_bits) / 8)


def _bits(cache_type: str | None) -> float:
    return CACHE_BITS.get(cache_type or DEFAULT_CACHE_TYPE, CACHE_BITS[DEFAULT_CACHE_TYPE])


def _last(arguments: Sequence[str], names: frozenset[str]) -> str | None:
    """The value of the last of these arguments, as ``--name value`` or ``--name=value``."""
    found = None
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else (arguments[at + 1] if at + 1 < len(arguments) else None)
    return found
