"""How the rest of an answer is asked for, and when it is not."""

from typing import Any

import pytest

from corral.core.call import Call, Endpoint
from corral.core.resume import going_on, limited, told_text
from corral.core.transcript import Said

HELLO = {"role": "user", "content": "hello"}
HALF = Said("The horse")


def chat(*messages: dict[str, Any], n: int = 1, **fields: Any) -> Call:
    told = {"messages": list(messages or (HELLO,)), "max_tokens": 9, "seed": 4, **fields}
    return Call(Endpoint.CHAT, "m", told, stream=True, n=n, max_tokens=9)


def completion(prompt: object, **fields: Any) -> Call:
    return Call(Endpoint.COMPLETIONS, "m", {"prompt": prompt, "max_tokens": 9, **fields}, max_tokens=9)


def test_a_chat_goes_on_with_the_text_as_the_assistants_last_message() -> None:
    call = going_on(chat(), HALF)
    assert call is not None
    assert call.fields == {
        "messages": [HELLO, {"role": "assistant", "content": "The horse"}],
        "max_tokens": 9,
        "seed": 4,
        "continue_final_message": True,
        "add_generation_prompt": False,
        "echo": True,
    }
    assert told_text(call, HALF) == HALF


def test_thoughts_go_on_as_thoughts() -> None:
    call = going_on(chat(), Said(reasoning="hm"))
    assert call is not None
    assert call.fields["messages"][-1] == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert call.fields["continue_final_message"] == "reasoning_content"
    call = going_on(chat(), Said("Yes", "hmm"))
    assert call is not None
    assert call.fields["messages"][-1] == {"role": "assistant", "content": "Yes", "reasoning_content": "hmm"}
    assert call.fields["continue_final_message"] is True
    assert told_text(call, Said("Yes", "hmm")) == Said("Yes", "hmm")


def test_an_answer_that_the_client_has_begun_is_added_to() -> None:
    begun = {"role": "assistant", "content": "Well, ", "name": "x"}
    call = going_on(chat(HELLO, begun), HALF)
    assert call is not None
    assert call.fields["messages"] == [HELLO, {**begun, "content": "Well, The horse"}]
    assert told_text(call, HALF).content == "Well, The horse"


@pytest.mark.parametrize(
    "begun",
    [
        {"role": "assistant", "content": [{"type": "text", "text": "Well, "}]},
        # Whether the server has repeated it cannot be told.
        {"role": "assistant", "content": "The"},
        {"role": "assistant", "content": "a", "tool_calls": []},
    ],
)
def test_an_answer_that_the_client_has_begun_in_another_way_is_not(begun: dict[str, Any]) -> None:
    assert going_on(chat(HELLO, begun), HALF) is None


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        # Its thoughts came behind words, and would be put before them.
        ({"content": "Well, "}, Said("", "hm")),
        ({"content": "Well, "}, Said("yes", "hm")),
        # Whether the server has repeated those of the client cannot be told.
        ({"content": "", "reasoning_content": "h"}, Said("", "hm")),
    ],
)
def test_thoughts_whose_place_cannot_be_told_are_not_gone_on_with(begun: dict[str, Any], said: Said) -> None:
    assert going_on(chat(HELLO, {"role": "assistant", **begun}), said) is None


def test_a_client_may_say_that_its_message_is_to_be_continued() -> None:
    begun = {"role": "assistant", "content": "Well, "}
    call = going_on(chat(HELLO, begun, continue_final_message="content", add_generation_prompt=False), HALF)
    assert call is not None
    assert call.fields["messages"] == [HELLO, {**begun, "content": "Well, The horse"}]


def test_thoughts_that_the_client_has_begun_are_added_to() -> None:
    begun = {"role": "assistant", "content": "", "reasoning_content": "So "}
    call = going_on(chat(HELLO, begun), Said("yes", "hm"))
    assert call is not None
    assert call.fields["messages"][-1] == {**begun, "content": "yes", "reasoning_content": "So hm"}


@pytest.mark.parametrize(
    ("prompt", "continued"),
    [
        ("Once", "OnceThe horse"),
        (["Once"], ["OnceThe horse"]),
        ([1, 2], [1, 2, "The horse"]),
        ([[1, 2]], [[1, 2, "The horse"]]),
    ],
)
def test_a_completion_goes_on_behind_its_prompt(prompt: object, continued: object) -> None:
    call = going_on(completion(prompt), HALF)
    assert call is not None
    assert call.fields == {"prompt": continued, "max_tokens": 9}
    assert told_text(call, HALF) == Said()


UNSOUND = [
    chat(n=2),
    *(chat(**{field: True}) for field in ("grammar", "json_schema", "logprobs", "n_probs", "echo")),
    # Any JSON.
    chat(json_schema={}),
    completion("a", json_schema={}),
    chat(response_format={"type": "json_object"}),
    chat(tools=[{}], tool_choice="required"),
    # What was said is no message of the assistant's.
    chat(continue_final_message=True),
    chat(add_generation_prompt=False),
    completion("a", grammar="root ::= x"),
    Call(Endpoint.COMPLETIONS, "m", {"prompt": ["a", "b"]}, inputs=2),
]


@pytest.mark.parametrize("call", UNSOUND, ids=lambda call: str(sorted(call.fields)))
def test_what_would_not_be_the_same_answer_is_not_gone_on_with(call: Call) -> None:
    assert going_on(call, HALF) is None


@pytest.mark.parametrize("call", [chat(), *UNSOUND], ids=lambda call: str(sorted(call.fields)))
def test_an_answer_of_which_nothing_was_said_begins_anew(call: Call) -> None:
    assert going_on(call, Said(identity={"id": "1"})) is call


def test_what_is_set_to_nothing_is_no_obstacle() -> None:
    assert going_on(chat(grammar="", logprobs=False, n_probs=0, echo=False, json_schema=None), HALF) is not None


def test_tools_that_may_be_called_are_no_obstacle() -> None:
    call = going_on(chat(tools=[{}], tool_choice="auto", response_format={"type": "text"}), HALF)
    assert call is not None
    assert call.fields["tools"] == [{}]


def test_the_beginning_of_a_token_that_may_end_the_answer_is_not_told_but_known() -> None:
    """Of " END" llama-server sends the blank and holds back what may be a stop text."""
    said = Said("The horse ")
    call = going_on(chat(stop=["END"]), said)
    assert call is not None
    assert call.fields["messages"][-1]["content"] == "The horse"
    assert told_text(call, said) == said
    call = going_on(completion("Once", stop="END"), said)
    assert call is not None
    assert call.fields["prompt"] == "OnceThe horse"
    assert told_text(call, said) == Said(" ")


@pytest.mark.parametrize(("said", "fields"), [(Said("The horse "), {}), (Said(" "), {"stop": ["END"]})])
def test_other_blanks_are_told(said: Said, fields: dict[str, Any]) -> None:
    call = going_on(chat(**fields), said)
    assert call is not None
    assert call.fields["messages"][-1]["content"] == said.content


def test_the_limit_of_tokens_is_told_where_it_is_read() -> None:
    call = limited(chat(), 4)
    assert (call.max_tokens, call.fields["max_tokens"]) == (4, 4)
