"""The memory of a model, by its measures."""

import pytest

from corral.core.footprint import Anatomy, estimate_bytes, kv_bytes

# Llama 3.1 8B: 32 layers, 8 KV heads, a head size of 128; SmolLM2-135M: 30 layers, 3 KV heads, 64.
LLAMA = Anatomy(5_000_000_000, kv_heads=32 * 8, key_length=128, value_length=128, context=131_072)
SMOL = Anatomy(98_362_432, kv_heads=30 * 3, key_length=64, value_length=64, context=8192)
MIB = 2**20


def test_the_cache_of_a_token_is_as_the_manual_says() -> None:
    assert kv_bytes(LLAMA, 1) == 128 * 1024
    assert kv_bytes(SMOL, 2) == 45 * 1024


@pytest.mark.parametrize(
    ("arguments", "mib"),
    [
        ((), 512),
        (("-ctk", "q8_0", "-ctv", "q8_0"), 272),
        (("--cache-type-k=q4_0",), 328),
        (("-ctk", "q4_0", "-ctk", "f16"), 512),
        (("-ctk",), 512),
        (("-ctk", "unheard"), 512),
    ],
)
def test_the_type_of_the_cache_counts(arguments: tuple[str, ...], mib: int) -> None:
    assert kv_bytes(LLAMA, 4096, arguments) == mib * MIB


@pytest.mark.parametrize(
    ("ctx", "arguments", "tokens"),
    [
        (None, (), 8192),
        (0, (), 8192),
        (2048, (), 2048),
        (2048, ("-c", "1024"), 1024),
        (2048, ("--ctx-size=512",), 512),
        (2048, ("-c", "0"), 8192),
        (2048, ("-c", "1024", "--ctx-size", "0"), 8192),
        (2048, ("-c",), 2048),
    ],
)
def test_the_context_is_the_one_that_llama_server_takes(
    ctx: int | None, arguments: tuple[str, ...], tokens: int
) -> None:
    expected = SMOL.weights_bytes + kv_bytes(SMOL, tokens) + 7
    assert estimate_bytes(SMOL, ctx, arguments, 7) == expected


def test_of_an_unknown_model_only_the_weights_count() -> None:
    assert estimate_bytes(Anatomy(100), 4096, (), 7) == 107
