"""Exceptions in the log."""

import json
from collections.abc import Callable
from typing import Any

from corral.core.errors import BadReply
from corral.observe.failure import MAX_DEPTH, MAX_FRAMES, MAX_MEMBERS, describe

SECRET = "canary-7f3a"


def raised(act: Callable[[], object]) -> Exception:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - any of them is what the test is about.
        return error
    raise AssertionError("nothing was raised")


def fail(error: BaseException) -> None:
    raise error


def test_our_own_and_the_operating_systems_errors_keep_their_message() -> None:
    assert describe(BadReply("not HTTP"))["message"] == "not HTTP"
    told = describe(raised(lambda: open("/nowhere/at/all")))  # noqa: SIM115 - it cannot be opened.
    assert (told["type"], "No such file" in told["message"]) == ("FileNotFoundError", True)


def test_the_message_of_any_other_error_is_not_told_as_it_may_quote_a_prompt() -> None:
    for error in (
        raised(lambda: int(SECRET)),
        raised(lambda: dict[str, int]()[SECRET]),
        raised(lambda: fail(ValueError(SECRET))),
    ):
        assert SECRET not in json.dumps(describe(error))


def test_the_stack_names_file_function_and_line() -> None:
    stack = describe(raised(lambda: fail(ValueError())))["stack"]
    assert "test_failure.py" in stack[-1]
    assert stack[-1].endswith("fail: raise error")


def test_causes_and_members_of_groups_are_told() -> None:
    def wrap() -> None:
        try:
            fail(BadReply("inner"))
        except BadReply as error:
            raise RuntimeError from error

    told = describe(ExceptionGroup("several", [raised(wrap), KeyError("a")]))
    assert [member["type"] for member in told["members"]] == ["RuntimeError", "KeyError"]
    assert told["members"][0]["cause"]["message"] == "inner"


def test_a_suppressed_context_is_left_out() -> None:
    def wrap() -> None:
        try:
            fail(KeyError("a"))
        except KeyError:
            raise RuntimeError from None

    assert "cause" not in describe(raised(wrap))


def depth_of(told: dict[str, Any]) -> int:
    return 1 + (depth_of(told["cause"]) if "cause" in told else 0)


def test_endless_chains_and_large_groups_are_cut() -> None:
    chain: BaseException = ValueError()
    for _ in range(100):
        following = ValueError()
        following.__cause__ = chain
        chain = following
    assert depth_of(describe(chain)) == MAX_DEPTH + 1
    group = ExceptionGroup("many", [ValueError() for _ in range(100)])
    assert len(describe(group)["members"]) == MAX_MEMBERS


def test_a_chain_that_leads_to_itself_ends() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert depth_of(describe(first)) == MAX_DEPTH + 1


def recurse() -> None:
    recurse()


def test_the_stack_of_an_endless_recursion_is_cut_to_its_innermost_frames() -> None:
    told = describe(raised(recurse))
    assert (told["type"], len(told["stack"])) == ("RecursionError", MAX_FRAMES)
    assert "recurse" in told["stack"][-1]
