"""An answer that breaks off, wherever that is and however often, comes out as the one that does not."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from corral.core.call import Call, Endpoint
from corral.core.errors import ConnectionLost, CorralError
from corral.core.transcript import Said
from corral.core.usage import Usage
from corral.pipeline.gather import Gathered
from corral.pipeline.strand import Sink, Strand
from corral.upstream.reply import Feed, FeedChunk, Reply

PROMPT_TOKENS = 7
CACHED_TOKENS = 2
DONE = "[DONE]"
# Of an answer: thoughts and words, of which one is empty.
Token = tuple[str, str]
# What ends a reply before its time, beside the end of the connection.
LAST_WORDS = [
    b"",
    b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n',
    b"data: {nonsense\n\n",
]


@dataclass(frozen=True)
class Break:
    """Where a stream breaks off (in bytes, from the start on again if it is shorter), how, and where it is cut."""

    after: int
    last_words: bytes
    cuts: Sequence[int]


@dataclass(frozen=True)
class Server:
    """Says the same tokens to whoever asks, goes on where a text ends, and breaks off."""

    spoken: Sequence[Token]
    breaks: Sequence[Break]
    crlf: bool
    # Between all events.
    comments: bool
    # A message that is continued is repeated in a chunk of its own, which tells of progress, or with the first token.
    repeats_apart: bool

    def pieces(self, call: Call, number: int) -> list[bytes]:
        """What comes of reply ``number``, as the network cuts it."""
        stream = b"".join(map(self._written, self._events(call, number)))
        if number == len(self.breaks):
            return [stream]
        broken = self.breaks[number]
        stream = stream[: broken.after % len(stream)] + broken.last_words
        ends = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in broken.cuts)})
        return [stream[start:end] for start, end in pairwise(ends)]

    def count(self, said: Said) -> int:
        """How many tokens a text is."""
        ends = accumulate(self.spoken, added, initial=("", ""))
        return next(count for count, end in enumerate(ends) if end == (said.reasoning, said.content))

    def _written(self, data: str) -> bytes:
        event = f"data: {data}\n\n" + (": ping\n\n" if self.comments else "")
        return event.replace("\n", "\r\n" if self.crlf else "\n").encode()

    def _events(self, call: Call, number: int) -> list[str]:
        begun = begun_of(call)
        said = self.count(Said(begun[1], begun[0]))
        rest = list(self.spoken[said : said + call.max_tokens])
        finish = "length" if len(rest) == call.max_tokens else "stop"
        prompt = PROMPT_TOKENS + said
        usage = {
            "completion_tokens": len(rest),
            "prompt_tokens": prompt,
            "total_tokens": prompt + len(rest),
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS + said},
        }
        progress = {"total": prompt, "cache": CACHED_TOKENS + said, "processed": prompt, "time_ms": 1}
        repeated: Token = begun if call.fields.get("echo") else ("", "")
        if not self.repeats_apart and any(repeated):
            rest, repeated = [added(repeated, *rest[:1]), *rest[1:]], ("", "")
        chat, role = call.endpoint is Endpoint.CHAT, {"role": "assistant", "content": None}
        names = {"created": number, "id": f"chatcmpl-{number}", "model": f"file-{number}", "object": "chunk"}

        def chunk(told: dict[str, Any], finish: str | None = None, **more: object) -> str:
            piece = {"delta": told} if chat else {"text": told.get("content") or "", "logprobs": None}
            choice = {"finish_reason": finish, "index": 0} | piece
            return json.dumps({"choices": [choice], **names, **more}, ensure_ascii=False, separators=(",", ":"))

        last = [chunk({}, finish), json.dumps({"choices": [], **names, "usage": usage})]
        return [
            *([chunk(role), chunk(delta(repeated), prompt_progress=progress)] if any(repeated) else []),
            chunk(role, prompt_progress=progress),
            *([chunk(role)] if chat and not any(repeated) else []),
            *(chunk(delta(token)) for token in rest),
            *(last if chat else [chunk({}, finish, usage=usage)]),
            DONE,
        ]


def added(begun: Token, *more: Token) -> Token:
    thoughts, words = zip(begun, *more, strict=True)
    return "".join(thoughts), "".join(words)


def delta(token: Token) -> dict[str, str]:
    return {key: text for key, text in zip(("reasoning_content", "content"), token, strict=True) if text}


def begun_of(call: Call) -> Token:
    if call.endpoint is Endpoint.COMPLETIONS:
        return "", call.fields["prompt"].removeprefix("P")
    last = call.fields["messages"][-1]
    return (last.get("reasoning_content", ""), last["content"]) if last["role"] == "assistant" else ("", "")


@dataclass
class Played:
    """A reply that comes in these pieces and breaks off behind them. Written by the strand that reads it."""

    pieces: list[bytes]
    finished: bool = False

    async def splice(self, feed: Feed, feed_chunk: FeedChunk | None = None) -> None:
        for piece in self.pieces:
            if feed_chunk is None or not feed_chunk(b"%x\r\n%b\r\n" % (len(piece), piece)):
                feed(piece)
            if self.finished:
                return
        raise ConnectionLost("it broke off")

    def finish(self) -> None:
        self.finished = True


@dataclass
class Heard:
    """What a client of a stream has got. Written by the strand, through ``open``."""

    pieces: list[bytes] = field(default_factory=list)

    def open(self) -> Sink:
        return self.pieces.append

    def chunks(self) -> list[dict[str, Any]]:
        *told, done, end = b"".join(self.pieces).decode().split("\n\n")
        assert (done, end) == (f"data: {DONE}", "")
        return [json.loads(each.removeprefix("data: ")) for each in told]


async def answer(strand: Strand, server: Server) -> None:
    """Attempts until one comes to the end."""
    for number in range(len(server.breaks) + 1):
        if strand.said is not None and not strand.resume(server.count(strand.said)):
            return
        reply = cast(Reply, Played(server.pieces(strand.call, number)))
        try:
            await strand.splice(reply, lambda _: None)
        except CorralError:
            if not strand.break_off():
                assert not strand.events
                strand.begin()
        else:
            return
    raise AssertionError("the last one does not break off")


# Such as repeat themselves are the hardest to join.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5) | st.sampled_from(["ha", " ha", "1"])
thinking = st.lists(texts.map(lambda text: (text, "")), max_size=4)
speaking = st.lists(texts.map(lambda text: ("", text)), max_size=8)
places = st.integers(0, 3000)
breaks = st.lists(st.builds(Break, places, st.sampled_from(LAST_WORDS), st.lists(places, max_size=30)), max_size=4)


def servers(spoken: st.SearchStrategy[list[Token]]) -> st.SearchStrategy[Server]:
    return st.builds(Server, spoken, breaks, st.booleans(), st.booleans(), st.booleans())


def asked(endpoint: Endpoint, max_tokens: int, *, include_usage: bool = False) -> Call:
    fields = {"messages": [{"role": "user", "content": "P"}]} if endpoint is Endpoint.CHAT else {"prompt": "P"}
    return Call(endpoint, "asked", fields, stream=True, include_usage=include_usage, max_tokens=max_tokens)


CHATS = servers(st.builds(lambda thoughts, words: thoughts + words, thinking, speaking))
CASES = st.one_of(st.tuples(st.just(Endpoint.CHAT), CHATS), st.tuples(st.just(Endpoint.COMPLETIONS), servers(speaking)))


@given(CASES, st.integers(1, 12), st.booleans())
def test_a_stream_comes_out_whole(case: tuple[Endpoint, Server], max_tokens: int, include_usage: bool) -> None:
    endpoint, server = case
    heard, said = Heard(), server.spoken[:max_tokens]
    strand = Strand(asked(endpoint, max_tokens, include_usage=include_usage), heard.open)
    asyncio.run(answer(strand, server))
    chunks = heard.chunks()
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice.get("delta", choice) for choice in choices]
    thoughts = "".join(each.get("reasoning_content") or "" for each in deltas)
    words = "".join(each.get("content") or each.get("text") or "" for each in deltas)
    assert (thoughts, words) == added(("", ""), *said)
    assert ["role" in each for each in deltas].count(True) == (endpoint is Endpoint.CHAT)
    assert [choice["finish_reason"] for choice in choices][-1] == finish_of(server, max_tokens)
    assert [choice["finish_reason"] for choice in choices].count(None) == len(choices) - 1
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {"asked"}
    assert not [chunk for chunk in chunks if "prompt_progress" in chunk]
    assert strand.usage == Usage(PROMPT_TOKENS, CACHED_TOKENS, len(said))
    told = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    assert [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in told] == (
        [(PROMPT_TOKENS, len(said))] if include_usage else []
    )


@given(CASES, st.integers(1, 12))
def test_a_gathered_reply_comes_out_whole(case: tuple[Endpoint, Server], max_tokens: int) -> None:
    endpoint, server = case
    gathered, said = Gathered(endpoint), server.spoken[:max_tokens]
    strand = Strand(asked(endpoint, max_tokens), gathered.open, folds=True)
    asyncio.run(answer(strand, server))
    (choice,) = json.loads(gathered.body(strand.usage))["choices"]
    message = choice.get("message", {"content": choice.get("text")})
    assert (message.get("reasoning_content", ""), message["content"]) == added(("", ""), *said)
    assert choice["finish_reason"] == finish_of(server, max_tokens)
    assert strand.usage == Usage(PROMPT_TOKENS, CACHED_TOKENS, len(said))


def finish_of(server: Server, max_tokens: int) -> str:
    return "length" if max_tokens <= len(server.spoken) else "stop"
