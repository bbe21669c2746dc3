"""Model files: names, parts, what is wrong with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.config import gguf
from corral.config.problems import Mistake
from corral.config.values import MODEL_NAME

Make = Callable[[str], Path]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"),
        ("./models/Llama-70B-00001-of-00002.gguf", "llama-70b"),
        ("my model, new.GGUF", "my-model--new"),
        ("x", "x"),
        ("_.gguf", "llama"),
    ],
)
def test_a_file_gives_its_model_a_name(file: str, name: str) -> None:
    assert gguf.name_of(Path(file)) == name


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1))
def test_every_file_gives_a_valid_name(file: str) -> None:
    assert MODEL_NAME.fullmatch(gguf.name_of(Path(file)))


def test_a_file_that_begins_with_gguf_is_accepted(gguf_file: Make) -> None:
    gguf.check(gguf_file("x.gguf"))


def test_a_split_model_needs_all_its_parts(gguf_file: Make) -> None:
    first = gguf_file("x-00001-of-00003.gguf")
    gguf_file("x-00002-of-00003.gguf")
    with pytest.raises(Mistake, match=r"no file .*x-00003-of-00003\.gguf"):
        gguf.check(first)
    gguf_file("x-00003-of-00003.gguf")
    gguf.check(first)


def test_a_split_model_is_named_by_its_first_part(gguf_file: Make) -> None:
    second = gguf_file("x-00002-of-00002.gguf")
    with pytest.raises(Mistake) as caught:
        gguf.check(second)
    assert "x-00001-of-00002.gguf" in str(caught.value.right)


def test_a_count_of_no_parts_is_no_split(gguf_file: Make) -> None:
    assert gguf.parts_of(gguf_file("x-00001-of-00000.gguf")) == (Path.cwd() / "x-00001-of-00000.gguf",)


def test_a_file_of_another_kind_is_refused(here: Path) -> None:
    (here / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(Mistake, match="not a GGUF file"):
        gguf.check(here / "x.gguf")


def test_a_directory_is_no_model(here: Path) -> None:
    with pytest.raises(Mistake, match="cannot be read"):
        gguf.check(here)


def test_a_missing_file_is_refused_with_where_to_get_one(here: Path) -> None:
    with pytest.raises(Mistake) as caught:
        gguf.check(here / "x.gguf")
    assert "corral pull" in str(caught.value.right)
