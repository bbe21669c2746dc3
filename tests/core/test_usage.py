"""Tokens add up."""

from typing import Any

import pytest

from corral.core.usage import Usage


def test_the_total_is_the_prompt_and_the_completion() -> None:
    assert Usage(prompt_tokens=10, cached_tokens=8, completion_tokens=3).total_tokens == 13


def test_usages_add_up() -> None:
    assert Usage(1, 2, 3) + Usage(10, 20, 30) == Usage(11, 22, 33)


def test_a_sum_with_an_estimate_in_it_is_an_estimate() -> None:
    assert (Usage(1, 0, 1) + Usage(1, 0, 1, estimated=True)).estimated
    assert not (Usage() + Usage()).estimated


@pytest.mark.parametrize("odd", [None, "5", 1.5, [], {}])
def test_what_is_no_count_is_found_out_where_it_comes_in(odd: Any) -> None:
    for field in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        with pytest.raises(TypeError):
            Usage(**{field: odd})
