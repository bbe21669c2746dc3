"""What the fake says: deterministic words, or what a script in the prompt asks for."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

VOCABULARY = (
    "oak", "river", "stone", "lamp", "cloud", "field", "horse", "gate", "rope", "barn", "grass", "trail",
    "dust", "rain", "fence", "saddle", "wind", "creek", "hill", "moon", "ember", "fern", "copper", "willow",
)  # fmt: skip
# A prompt whose last message starts so carries JSON: text | tokens | count, finish, reasoning, tool_calls.
SCRIPT_MARK = "script:"
TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


@dataclass(frozen=True)
class Piece:
    """One token: its text, and the ``delta`` of a chat chunk that carries it."""

    text: str
    delta: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """An answer before it is given; a piece may be empty where a stop string was cut off."""

    pieces: tuple[Piece, ...]
    finish: str
    # What is repeated with the first chunk of progress, as a ``delta``.
    repeats: Mapping[str, str] = field(default_factory=dict)


def count_tokens(text: str) -> int:
    return len(TOKEN.findall(text))


@dataclass(frozen=True)
class Begun:
    """The start of an answer that the client has given itself, and whether it wants to have it repeated."""

    content: str = ""
    reasoning: str = ""
    echo: bool = False

    @property
    def text(self) -> str:
        return self.reasoning + self.content


NOTHING_BEGUN = Begun()


def chat_prompt(messages: list[dict[str, Any]], *, echo: bool = False) -> tuple[str, Begun]:
    """The rendered prompt, and the start of the answer when the last message is the assistant's."""
    begun = NOTHING_BEGUN
    if messages and messages[-1].get("role") == "assistant":
        begun = Begun(text_of(messages[-1].get("content")), messages[-1].get("reasoning_content") or "", echo)
        messages = messages[:-1]
    return "\n".join(f"<{m.get('role')}> {text_of(m.get('content'))}" for m in messages), begun


def text_of(content: object) -> str:
    """The text of a message's content: a string, or parts of which only text counts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def plan(fields: dict[str, Any], prompt: str, *, index: int, begun: Begun, tokens: int) -> Plan:
    """The answer to a prompt: the same for the same prompt, ``seed`` and choice; goes on where ``begun`` ends.

    What follows a script in a prompt counts as begun, too.
    """
    script, prompt, behind = script_in(prompt)
    if behind:
        begun = Begun(behind)
    limit = token_limit(fields)
    natural = int(script.get("count", limit if fields.get("ignore_eos") and limit else tokens))
    skip = count_tokens(begun.text)
    key = f"{prompt}|{fields.get('seed')}|{index}"
    pieces = rest_of(scripted(script), begun.text) or words(key, max(0, natural - skip), skip)
    finish = str(script.get("finish", "tool_calls" if script.get("tool_calls") else "stop"))
    if limit is not None and limit <= len(pieces):
        pieces, finish = pieces[:limit], "length"
    cut = cut_at_stop(pieces, finish, stops(fields))
    if not (begun.echo and begun.text):
        return cut
    told = {"reasoning_content": begun.reasoning, "content": begun.content}
    repeats = {key: text for key, text in told.items() if text}
    if fields.get("return_progress"):
        return replace(cut, pieces=cut.pieces or (Piece("", {}),), repeats=repeats)
    return Plan(repeated(cut.pieces, repeats), cut.finish)


def rest_of(pieces: list[Piece], begun: str) -> list[Piece]:
    """The pieces that spell what has not been begun; a last one without text stands for the end of the answer."""
    while begun and pieces and begun.startswith(pieces[0].text):
        begun = begun[len(pieces[0].text) :]
        pieces = pieces[1:] or [Piece("", {})]
    return pieces


def repeated(pieces: tuple[Piece, ...], repeats: Mapping[str, str]) -> tuple[Piece, ...]:
    """The first piece repeats what was begun (llama.cpp, ``echo``: seen with the real one)."""
    first, *rest = pieces or (Piece("", {}),)
    delta = {key: text + first.delta.get(key, "") for key, text in repeats.items()}
    return (Piece(first.text, first.delta | delta), *rest)


def token_limit(fields: dict[str, Any]) -> int | None:
    """``max_tokens`` under its names, in llama-server's order; 0 makes one token, as there; ``None``: no limit."""
    for name in ("n_predict", "max_completion_tokens", "max_tokens"):
        if fields.get(name) is not None:
            return max(1, int(fields[name])) if int(fields[name]) >= 0 else None
    return None


def stops(fields: dict[str, Any]) -> list[str]:
    stop = fields.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


def script_in(prompt: str) -> tuple[dict[str, Any], str, str]:
    """The script of a prompt, the prompt to its end, and what stands behind it."""
    before, mark, script = prompt.rpartition(SCRIPT_MARK)
    if not mark:
        return {}, prompt, ""
    told, end = json.JSONDecoder().raw_decode(script, len(script) - len(script.lstrip()))
    behind = script[end:]
    return dict(told), before + mark + script[:end], behind if behind.strip() else ""


def scripted(script: dict[str, Any]) -> list[Piece]:
    """The tokens that a script spells out; none when it leaves the words to the fake."""
    pieces = [Piece(text, {"reasoning_content": text}) for text in TOKEN.findall(script.get("reasoning", ""))]
    texts = script.get("tokens") or TOKEN.findall(script.get("text", ""))
    pieces += [Piece(text, {"content": text}) for text in texts]
    for index, call in enumerate(script.get("tool_calls", ())):
        pieces += tool_pieces(index, call["name"], call["arguments"])
    return pieces


def tool_pieces(index: int, name: str, arguments: object) -> list[Piece]:
    """A tool call as llama-server streams it: the name with no arguments, then the arguments in pieces."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"index": index, "id": f"call{index}{name}", "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [Piece(f"<tool_call>{name}", {"tool_calls": [call]})]
    rest = [(part, {"index": index, "function": {"arguments": part}}) for part in TOKEN.findall(text)]
    return pieces + [Piece(part, {"tool_calls": [more]}) for part, more in rest]


def words(key: str, count: int, skip: int) -> list[Piece]:
    digest = hashlib.sha256(key.encode()).digest()
    texts = [VOCABULARY[(digest[i % len(digest)] + i) % len(VOCABULARY)] for i in range(skip, skip + count)]
    spaced = [text if i + skip == 0 else f" {text}" for i, text in enumerate(texts)]
    return [Piece(text, {"content": text}) for text in spaced]


def cut_at_stop(pieces: list[Piece], finish: str, stop_strings: list[str]) -> Plan:
    """End the answer at the first stop string; the tokens that spell it count but are not shown."""
    content = "".join(piece.delta.get("content", "") for piece in pieces)
    ends = [end for stop in stop_strings if (end := content.find(stop)) >= 0]
    if not ends:
        return Plan(tuple(pieces), finish)
    room, kept = min(ends), list[Piece]()
    for piece in pieces:
        kept.append(shorten(piece, room))
        room -= len(piece.delta.get("content", ""))
        if room < 0:
            break
    return Plan(tuple(kept), "stop")


def shorten(piece: Piece, room: int) -> Piece:
    if "content" not in piece.delta:
        return piece
    text = piece.text[: max(0, room)]
    return Piece(text, {"content": text} if text else {})


def message(pieces: Sequence[Piece]) -> dict[str, Any]:
    """What a whole chat reply holds (``to_json_oaicompat`` in llama.cpp's ``common/chat.cpp``)."""
    content = "".join(piece.delta.get("content", "") for piece in pieces)
    made: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning := "".join(piece.delta.get("reasoning_content", "") for piece in pieces):
        made["reasoning_content"] = reasoning
    if calls := gather_calls(pieces):
        made["tool_calls"] = calls
    return made


def gather_calls(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for delta in (call for piece in pieces for call in piece.delta.get("tool_calls", ())):
        if "id" in delta:
            calls.append({"type": "function", "function": dict(delta["function"]), "id": delta["id"]})
        else:
            calls[-1]["function"]["arguments"] += delta["function"]["arguments"]
    return calls
