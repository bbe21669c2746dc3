"""Single values as files, environment and flags spell them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.config import values
from corral.config.problems import Mistake

NAMES = st.from_regex(values.MODEL_NAME, fullmatch=True).filter(lambda name: "://" not in name)
TARGETS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1)


@pytest.mark.parametrize(("written", "meant"), [("42", 42), (" 42 ", 42), (42, 42), ("-1", -1), ("007", 7)])
def test_a_whole_number(written: object, meant: int) -> None:
    assert values.whole_number(written) == meant


@pytest.mark.parametrize(
    "written", ["abc", "4.0", 4.0, "1_000", "", "+1", "1e3", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 19, True, None]
)
def test_what_is_no_whole_number_is_refused(written: object) -> None:
    with pytest.raises(Mistake, match="not a whole number"):
        values.whole_number(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1", True), ("0", False), ("true", True), ("False", False), (1, True), (0, False), (True, True)],
)
def test_a_flag(written: object, meant: bool) -> None:
    assert values.flag(written) is meant


@pytest.mark.parametrize("written", ["yes", "on", "2", 2, 1.0, "", None, []])
def test_what_is_no_flag_is_refused(written: object) -> None:
    with pytest.raises(Mistake, match="neither true nor false"):
        values.flag(written)


def test_a_list_is_text_with_commas_or_a_list() -> None:
    assert values.words("a, b,c") == ("a", "b", "c") == values.words(["a", " b", "c"])


@pytest.mark.parametrize("written", ["a,,b", "a,", ",", ["a", 5], 5, {"a": "b"}])
def test_a_list_with_an_empty_or_strange_entry_is_refused(written: object) -> None:
    with pytest.raises(Mistake):
        values.words(written)


def test_a_path_begins_at_the_home_directory_with_a_tilde() -> None:
    assert values.path("~/x.gguf") == Path.home() / "x.gguf"


@given(NAMES, TARGETS)
def test_a_pair_is_split_at_its_first_equals_sign(name: str, target: str) -> None:
    assert values.pair(f" {name} = {target} ", right="") == (name, target)


@given(st.text())
def test_any_text_is_a_pair_of_two_texts_or_a_mistake(entry: str) -> None:
    try:
        name, target = values.pair(entry, right="a=b")
    except Mistake:
        return
    assert name
    assert target
    assert "=" not in name


def test_a_malformed_pair_is_not_quoted() -> None:
    with pytest.raises(Mistake) as caught:
        values.pair("http://u:p@host", right="a=b")
    assert (caught.value.wrong, caught.value.right) == ("is not a pair NAME=VALUE", "write e.g. a=b")


@given(st.lists(st.tuples(NAMES, TARGETS.filter(lambda text: not text.startswith("~"))), min_size=1, max_size=5))
def test_paths_by_name_read_the_same_from_text_and_from_a_mapping(pairs: list[tuple[str, str]]) -> None:
    named = dict(pairs)
    text = ",".join(f"{name}={path}" for name, path in named.items())
    assert values.paths_by_name(text) == values.paths_by_name(named) == tuple((n, Path(p)) for n, p in named.items())


@pytest.mark.parametrize("written", ["a", "a=x,a=y", "a=x,", "=x", "-a=x", ["a"], 5])
def test_malformed_paths_by_name_are_refused(written: object) -> None:
    with pytest.raises(Mistake):
        values.paths_by_name(written)


@pytest.mark.parametrize("name", ["llama-8b", "org/model:tag", "a", "gpt-3.5-turbo", "x@y"])
def test_a_model_name_is_what_clients_send(name: str) -> None:
    assert values.model_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "http://a", "a b", "a,b", "a=b", "-a", "a" * 129, 3.5, None, "ä"])
def test_what_is_no_model_name_is_refused(name: object) -> None:
    with pytest.raises(Mistake):
        values.model_name(name)


@pytest.mark.parametrize(("written", "meant"), [("2", 2.0), (0.5, 0.5), (" 1e1 ", 10.0), (0.01, 0.01), (1000, 1000.0)])
def test_a_weight(written: object, meant: float) -> None:
    assert values.weight(written) == meant


@pytest.mark.parametrize("written", ["heavy", "", 0, -1, 0.001, 1001, "nan", "inf", True, None, []])
def test_what_is_no_weight_is_refused(written: object) -> None:
    with pytest.raises(Mistake, match="is not a weight"):
        values.weight(written)


@pytest.mark.parametrize("written", ["a=2,b=0.5", {"a": 2, "b": 0.5}, (("a", 2), ("b", 0.5))])
def test_weights_of_clients(written: object) -> None:
    assert values.weights_by_client(written) == (("a", 2.0), ("b", 0.5))


@pytest.mark.parametrize("written", ["a=2,a=3", "a", "a=heavy", 5, ["a"]])
def test_weights_of_clients_that_say_something_else_are_refused(written: object) -> None:
    with pytest.raises(Mistake):
        values.weights_by_client(written)
