"""Tokens add up."""

from corral.core.usage import Usage


def test_the_total_is_the_prompt_and_the_completion() -> None:
    assert Usage(prompt_tokens=10, cached_tokens=8, completion_tokens=3).total_tokens == 13


def test_usages_add_up() -> None:
    assert Usage(1, 2, 3) + Usage(10, 20, 30) == Usage(11, 22, 33)


def test_a_sum_with_an_estimate_in_it_is_an_estimate() -> None:
    assert (Usage(1, 0, 1) + Usage(1, 0, 1, estimated=True)).estimated
    assert not (Usage() + Usage()).estimated
