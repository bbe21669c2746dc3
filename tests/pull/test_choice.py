"""Which files of a repository are meant, when it is clear, and what is said when it is not."""

import pytest

from corral.core.errors import PullError
from corral.pull.choice import RemoteFile, Variant, Wanted, check_complete, choose, group, parse


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1_000_000_000 * number, None) for number, path in enumerate(paths, 1)]


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("org/repo", Wanted("org/repo")),
        ("hf:org/repo", Wanted("org/repo")),
        ("org/repo:Q4_K_M", Wanted("org/repo", quant="Q4_K_M")),
        ("hf:org/repo/file.gguf", Wanted("org/repo", path="file.gguf")),
        ("org/re.po-1/sub/file.gguf", Wanted("org/re.po-1", path="sub/file.gguf")),
    ],
)
def test_a_repository_a_quantisation_or_a_file_can_be_named(what: str, wanted: Wanted) -> None:
    assert parse(what, known=[]) == wanted


@pytest.mark.parametrize(
    "what", ["", "smolm2", "org/", "/repo", "org/repo/readme.md", "org/repo/f.gguf:Q4_0", "o/r o", "../.."]
)
def test_what_names_nothing_is_refused_with_what_could_be_said(what: str) -> None:
    with pytest.raises(PullError, match=r"smollm2, or a repository on Hugging Face as ORG/REPO"):
        parse(what, known=["smollm2"])


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Meta-Llama-3.1-8B-Instruct-Q5_K_M.gguf", "Q5_K_M"),
        ("Q6_K/Big-Q6_K-00001-of-00002.gguf", "Q6_K"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Qwen3-4B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-Q4_K_M-imat.gguf", "Q4_K_M"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.f16.gguf", "F16"),
        ("model-BF16.gguf", "BF16"),
        ("Qwen2-7B.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_the_quantisation_stands_in_the_name(path: str, quant: str) -> None:
    (variant,) = group(files(path))

    assert variant.quant == quant


def chosen(paths: list[str], wanted: Wanted) -> list[str]:
    return [file.path for file in choose(files(*paths), wanted).files]


def test_the_only_model_needs_no_choice() -> None:
    assert chosen(["README.md", "mmproj-F16.gguf", "imatrix.gguf", "m-Q8_0.gguf"], Wanted("o/r")) == ["m-Q8_0.gguf"]


def test_of_several_the_usual_quantisation_is_taken() -> None:
    assert chosen(["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"], Wanted("o/r")) == ["m-Q4_K_M.gguf"]


@pytest.mark.parametrize("quant", ["Q8_0", "q8_0"])
def test_a_named_quantisation_is_taken_in_any_case(quant: str) -> None:
    assert chosen(["m-Q4_K_M.gguf", "m-q8_0.gguf"], Wanted("o/r", quant=quant)) == ["m-q8_0.gguf"]


def test_a_split_model_is_one_with_its_files_in_order() -> None:
    paths = ["Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "m-Q2_K.gguf"]

    assert chosen(paths, Wanted("o/r")) == sorted(paths[:2])
    # Any of its files names the whole model.
    assert chosen(paths, Wanted("o/r", path=paths[0])) == sorted(paths[:2])


def test_a_split_model_with_a_file_missing_is_refused() -> None:
    with pytest.raises(PullError, match=r"split into 3 files, 2 are there"):
        check_complete(Variant("m", tuple(files("m-00001-of-00003.gguf", "m-00002-of-00003.gguf"))))
    check_complete(Variant("m", tuple(files("m.gguf"))))
    check_complete(Variant("m", tuple(files("m-00001-of-00001.gguf"))))


def refusal(paths: list[str], wanted: Wanted) -> list[str]:
    with pytest.raises(PullError) as raised:
        choose(files(*paths), wanted)
    return raised.value.message.splitlines()


def test_an_unclear_choice_lists_what_to_type() -> None:
    assert refusal(["m-Q8_0.gguf", "m-Q5_0.gguf"], Wanted("o/r")) == [
        "'o/r' has 2 models; say which:",
        "  o/r:Q8_0   1.00 GB",
        "  o/r:Q5_0   2.00 GB",
    ]


def test_a_quantisation_that_is_not_there_lists_those_that_are() -> None:
    assert refusal(["m-Q8_0.gguf"], Wanted("o/r", quant="Q4_0")) == [
        "'o/r' has no 'Q4_0'; it has:",
        "  o/r:Q8_0   1.00 GB",
    ]


def test_a_quantisation_of_several_models_asks_for_the_file() -> None:
    assert refusal(["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], Wanted("o/r")) == [
        "'o/r' has 2 models; say which:",
        "  o/r/a-Q4_K_M.gguf   1.00 GB",
        "  o/r/b-Q4_K_M.gguf   2.00 GB",
    ]


def test_a_repository_without_models_says_so() -> None:
    assert "no GGUF files" in refusal(["model.safetensors"], Wanted("o/r"))[0]
