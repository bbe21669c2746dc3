"""What the head of a model file tells of the model's measures."""

from pathlib import Path

import pytest

from corral.config.gguf_metadata import HEAD_BYTES, anatomy_of, read_metadata
from corral.core.footprint import Anatomy
from support.gguf_file import Pair, llama, write_gguf


def test_the_measures_of_a_model_are_found(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", {"a": "text", "b": [1, 2], "c": True, **llama()}, size=5000)
    assert anatomy_of((file,)) == Anatomy(5000, kv_heads=4, key_length=8, value_length=8, context=128)


def test_the_parts_of_a_split_model_are_added_up(tmp_path: Path) -> None:
    parts = [write_gguf(tmp_path / f"{number}.gguf", llama(), size=3000) for number in range(3)]
    assert anatomy_of((*parts, tmp_path / "away.gguf")).weights_bytes == 9000


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"llama.attention.head_count_kv": [1, 0, 3]}, (4, 8, 8)),
        ({"llama.attention.head_count_kv": 0}, (8, 8, 8)),
        ({"llama.attention.key_length": 192, "llama.attention.value_length": 128}, (4, 192, 128)),
        ({"llama.attention.head_count": 0}, (4, None, None)),
        ({"llama.block_count": 0}, (None, 8, 8)),
        ({"general.architecture": "other"}, (None, None, None)),
    ],
)
def test_models_tell_it_in_several_ways(
    tmp_path: Path, more: dict[str, Pair], expected: tuple[int | None, int | None, int | None]
) -> None:
    anatomy = anatomy_of((write_gguf(tmp_path / "x.gguf", {**llama(), **more}),))
    assert (anatomy.kv_heads, anatomy.key_length, anatomy.value_length) == expected


def test_what_stands_before_the_vocabulary_is_enough(tmp_path: Path) -> None:
    vocabulary: dict[str, Pair] = {"tokenizer.ggml.tokens": ["word"] * (HEAD_BYTES // 10), "behind": 1}
    told = read_metadata(write_gguf(tmp_path / "x.gguf", {**llama(), **vocabulary}))
    assert told["llama.block_count"] == 2
    assert "behind" not in told


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04", b"GGUF" + b"\xff" * 100])
def test_a_file_that_is_none_tells_nothing_but_its_size(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    assert anatomy_of((file,)) == Anatomy(len(content))


def test_a_file_that_is_away_tells_nothing(tmp_path: Path) -> None:
    assert anatomy_of((tmp_path / "away.gguf",)) == Anatomy(0)
