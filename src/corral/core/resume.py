"""How an answer that broke off goes on elsewhere: the call that asks for the rest.

A chat is sent again with the text so far as its last message, which
llama-server then continues; a completion with the text behind its prompt. At
temperature 0 the joined text is the one that would have come without the
break, as far as the server reads as it writes (docs/decisions/0012).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.transcript import Said

# Without effect on the text, or sound to begin anew, is everything but: a grammar, which would start at its root; the
# probabilities of tokens, which belong to chunks; and what a client itself wants to have repeated.
UNSOUND = ("grammar", "json_schema", "logprobs", "n_probs", "echo")
# What they are when they are not asked for; a schema without a word stands for any JSON.
UNASKED = (None, False, 0, "")
# Of response formats, those that leave the text alone.
FREE_FORMATS = (None, "text")


def can_go_on(call: Call) -> bool:
    """Whether the text of this call can be continued; what has been said of it may still stand against that."""
    fields = call.fields
    if (
        call.endpoint is Endpoint.EMBEDDINGS
        or call.tasks != 1
        or any(fields.get(name) not in UNASKED for name in UNSOUND)
    ):
        return False
    if call.endpoint is Endpoint.COMPLETIONS:
        return True
    free = (fields.get("response_format") or {}).get("type") in FREE_FORMATS
    return free and fields.get("tool_choice") != "required"


def going_on(call: Call, said: Said) -> Call | None:
    """The call that asks another replica for what has not been said; None when that cannot be asked for.

    Its limit of tokens is that of ``call`` as yet.
    """
    if not said.text:
        # Nothing but the role: it can begin anew, whatever it asks for.
        return call
    if not can_go_on(call):
        return None
    said = replace(said, content=said.content.removesuffix(_begun_token(call, said)))
    fields = _continued_chat(call.fields, said) if call.endpoint is Endpoint.CHAT else _continued(call.fields, said)
    return None if fields is None else replace(call, fields={**call.fields, **fields})


def limited(call: Call, tokens: int) -> Call:
    """The same call for so many tokens."""
    return replace(call, max_tokens=tokens, fields={**call.fields, "max_tokens": tokens})


def told_text(call: Call, said: Said) -> Said:
    """Of a call that goes on: the beginning of the answer that comes once more, as the replica is given it or not."""
    again = _begun_token(call, said)
    if call.endpoint is not Endpoint.CHAT:
        return Said(again)
    last = call.fields["messages"][-1]
    return Said((last.get("content") or "") + again, last.get("reasoning_content") or "")


def _begun_token(call: Call, said: Said) -> str:
    """Blanks that a token begins with whose rest was held back, as it may be the beginning of a stop text.

    Most tokens begin with a blank, and few models go on well behind one.
    """
    bare = said.content.rstrip(" ")
    return said.content[len(bare) :] if bare and call.fields.get("stop") else ""


def _continued_chat(fields: Mapping[str, Any], said: Said) -> dict[str, Any] | None:
    messages = list(fields["messages"])
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    if messages and messages[-1]["role"] == "assistant":
        # The client has begun the answer itself.
        message = messages.pop()
        if not _can_be_added_to(message, said):
            return None
    elif fields.get("continue_final_message") or fields.get("add_generation_prompt") is False:
        # Another's message was to be continued, or none to be begun.
        return None
    content = (message.get("content") or "") + said.content
    reasoning = (message.get("reasoning_content") or "") + said.reasoning
    told = {"reasoning_content": reasoning} if reasoning else {}
    return {
        "messages": [*messages, {**message, "content": content, **told}],
        # llama.cpp, pull request 23089: which of the two is to be continued, and that it is repeated, so that the
        # joint can be found. Older servers always repeat it and continue the last message without being told to.
        "continue_final_message": True if content else "reasoning_content",
        "add_generation_prompt": False,
        "echo": True,
    }


def _can_be_added_to(begun: Mapping[str, Any], said: Said) -> bool:
    words, thoughts = begun.get("content") or "", begun.get("reasoning_content") or ""
    if not isinstance(words, str) or "tool_calls" in begun or (words and said.reasoning):
        return False
    # Older llama-servers repeat what was begun, newer ones do not, and which of them it was cannot be told.
    return not ((words and said.content.startswith(words)) or (thoughts and said.reasoning.startswith(thoughts)))


def _continued(fields: Mapping[str, Any], said: Said) -> dict[str, Any] | None:
    prompt = fields["prompt"]
    if isinstance(prompt, str):
        return {"prompt": prompt + said.content}
    if all(isinstance(token, int) for token in prompt):
        # Token ids and text may stand in one prompt (llama.cpp: tools/server/server-common.cpp, tokenize_mixed).
        return {"prompt": [*prompt, said.content]}
    inner = _continued({"prompt": prompt[0]}, said)
    return inner and {"prompt": [inner["prompt"]]}
