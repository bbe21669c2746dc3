"""What a replica is thought to have in its cache."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.prefix import BLOCK_BYTES, MAX_BLOCKS, PrefixIndex, Prompt, chained, is_compared, prompt_of

SYSTEM = {"role": "system", "content": "You are a horse. " * 60}
HELLO = {"role": "user", "content": "hello " * 100}
REPLY = {"role": "assistant", "content": "neigh"}


def chat(*messages: dict[str, Any], **fields: Any) -> Call:
    return Call(Endpoint.CHAT, "m", {"messages": list(messages), **fields})


def shared(one: Prompt, other: Prompt) -> int:
    """How many blocks two prompts have in common."""
    index = PrefixIndex()
    index.learn(one)
    return index.matched(other)


@given(st.binary(max_size=2000), st.binary(max_size=2000), st.binary(max_size=2000))
def test_prompts_share_the_blocks_that_are_the_same_from_the_start_on(start: bytes, one: bytes, other: bytes) -> None:
    common = len(start) // BLOCK_BYTES
    same = shared(chained(start + one), chained(start + other))
    assert same >= common
    for block in range(same):
        cut = slice(0, (block + 1) * BLOCK_BYTES)
        assert (start + one)[cut] == (start + other)[cut]


def test_a_block_after_a_difference_is_another_block() -> None:
    tail = b"x" * 10 * BLOCK_BYTES
    assert shared(chained(b"a" * BLOCK_BYTES + tail), chained(b"b" * BLOCK_BYTES + tail)) == 0


def test_the_end_of_an_endless_prompt_is_not_compared() -> None:
    prompt = chained(b"x" * (MAX_BLOCKS + 10) * BLOCK_BYTES)
    assert (len(prompt.chain), prompt.size_bytes) == (MAX_BLOCKS, (MAX_BLOCKS + 10) * BLOCK_BYTES)


def test_a_conversation_that_goes_on_begins_as_before() -> None:
    first, second = prompt_of(chat(SYSTEM, HELLO)), prompt_of(chat(SYSTEM, HELLO, REPLY, HELLO))
    assert shared(first, second) == len(first.chain) > 5
    assert second.size_bytes > first.size_bytes


def test_the_order_of_keys_and_what_does_not_reach_the_prompt_make_no_difference() -> None:
    turned = {"content": HELLO["content"], "role": "user"}
    assert prompt_of(chat(SYSTEM, HELLO, temperature=0.1)) == prompt_of(chat(SYSTEM, turned, max_tokens=5))


def test_tools_stand_before_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert shared(prompt_of(chat(SYSTEM)), prompt_of(chat(SYSTEM, tools=tools))) == 0
    assert shared(prompt_of(chat(SYSTEM, tools=tools)), prompt_of(chat(SYSTEM, HELLO, tools=tools))) > 3


@pytest.mark.parametrize(
    ("call", "compared"),
    [
        (Call(Endpoint.COMPLETIONS, "m", {"prompt": "x" * 1000}), True),
        (Call(Endpoint.COMPLETIONS, "m", {"prompt": list(range(1000))}), True),
        (Call(Endpoint.COMPLETIONS, "m", {"prompt": ["x" * 1000, "y"]}, inputs=2), False),
        (Call(Endpoint.EMBEDDINGS, "m", {"input": "x" * 1000}), False),
    ],
)
def test_what_is_compared(call: Call, compared: bool) -> None:
    assert is_compared(call) is compared
    assert not compared or prompt_of(call).chain


# The index.


def prompt(number: int, blocks: int = 4) -> Prompt:
    return chained(b"%4d" % number * (blocks * BLOCK_BYTES // 4))


def test_the_index_is_bounded_and_forgets_what_was_read_longest_ago_from_its_end_on() -> None:
    index = PrefixIndex(capacity=10)
    for number in range(3):
        index.learn(prompt(number))
    assert len(index) == 10
    assert [index.matched(prompt(number)) for number in range(3)] == [2, 4, 4]
    index.learn(prompt(0))
    assert [index.matched(prompt(number)) for number in range(3)] == [4, 2, 4]


def test_a_prompt_longer_than_the_index_is_kept_from_its_start_on() -> None:
    index = PrefixIndex(capacity=10)
    index.learn(prompt(1, blocks=30))
    assert (len(index), index.matched(prompt(1, blocks=30))) == (10, 10)


def test_a_hit_that_was_none_takes_what_is_older_with_it() -> None:
    index = PrefixIndex()
    for number in range(3):
        index.learn(prompt(number))
    index.correct(prompt(1).chain, since=index.now)
    assert [index.matched(prompt(number)) for number in range(3)] == [0, 0, 4]


def test_only_the_part_that_was_missed_is_gone() -> None:
    index = PrefixIndex()
    index.learn(prompt(1))
    index.correct(prompt(1).chain[3:], since=index.now)
    assert index.matched(prompt(1)) == 3


def test_what_was_read_again_meanwhile_is_there() -> None:
    index = PrefixIndex()
    index.learn(prompt(1))
    then = index.now
    index.learn(prompt(1))
    index.correct(prompt(1).chain, since=then)
    assert index.matched(prompt(1)) == 4


def test_a_process_that_was_started_anew_has_nothing() -> None:
    index = PrefixIndex()
    index.learn(prompt(1))
    index.clear()
    assert (len(index), index.matched(prompt(1))) == (0, 0)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.booleans(), st.integers(0, 8)), max_size=60),
)
def test_the_index_keeps_whole_starts_within_its_bound(capacity: int, steps: list[tuple[int, int, bool, int]]) -> None:
    index = PrefixIndex(capacity)
    for number, blocks, learns, start in steps:
        if learns:
            index.learn(prompt(number, blocks))
            assert index.matched(prompt(number, blocks)) == min(blocks, capacity)
        else:
            index.correct(prompt(number, blocks).chain[start:], since=index.now)
            assert index.matched(prompt(number, blocks)) <= max(start, 0) or start >= blocks
        assert len(index) <= capacity
        for each in range(6):
            # No block is there without those before it: a chain is forgotten from its end on.
            chain = prompt(each, 8).chain
            assert len([block for block in chain if block in index._read]) == index.matched(prompt(each, 8))
