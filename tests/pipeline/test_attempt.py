"""Which replies are asked for whole: those over which it does not matter that nobody notices a client who leaves."""

from typing import Any

import pytest
from orjson import dumps

from corral.config import RequestSettings, TimeoutSettings
from corral.core.call import Call, Endpoint
from corral.pipeline.attempt import WHOLE_BODY_BYTES, Attempts
from corral.pipeline.time_limits import TimeLimits
from corral.upstream.wire import Client

FEW = RequestSettings().whole_max_tokens


def asked_whole(text: str = "hello", **more: Any) -> bool:
    attempts = Attempts(Client(), TimeLimits(TimeoutSettings()), RequestSettings(), lambda: 0.0)
    fields = {"messages": [{"role": "user", "content": text}]}
    return attempts.asked_whole(Call(Endpoint.CHAT, "m", fields, **{"max_tokens": FEW, **more}), len(dumps(fields)))


@pytest.mark.parametrize(
    ("max_tokens", "text", "whole"),
    [
        (FEW, "hello", True),
        (FEW + 1, "hello", False),
        (FEW, "hello " * WHOLE_BODY_BYTES, False),
    ],
)
def test_only_a_short_reply_to_a_short_prompt_is_asked_for_whole(max_tokens: int, text: str, whole: bool) -> None:
    assert asked_whole(text, max_tokens=max_tokens) is whole


def test_a_prompt_is_short_as_long_as_the_body_is() -> None:
    frame = len(b'{"messages":[{"role":"user","content":""}]}')
    assert asked_whole("x" * (WHOLE_BODY_BYTES - frame))
    assert not asked_whole("x" * (WHOLE_BODY_BYTES - frame + 1))


def test_several_choices_are_gathered() -> None:
    assert not asked_whole(n=2)


def test_what_llama_server_does_not_stream_is_asked_for_whole_however_long() -> None:
    assert asked_whole("hello " * WHOLE_BODY_BYTES, max_tokens=4096, tools=True, logprobs=True)
