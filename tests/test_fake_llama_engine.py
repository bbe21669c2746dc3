"""The fake's replies have the shapes of the real llama.cpp's: same keys, same order, same kinds of values."""

import re
from collections.abc import Iterator

import pytest

from support.engine import BareEngine
from support.fake import FakeLlama
from support.raw_client import Reply, ask

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBED = "/v1/embeddings"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "temperature": 0}
USAGE = {"stream_options": {"include_usage": True}}
LONG = "hello " * 600


@pytest.fixture(scope="module")
def real() -> Iterator[BareEngine]:
    with BareEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(n_ctx=512) as fake:
        yield fake


def shape(value: object) -> object:
    """A value without what it says: keys in order, kinds, and what an element of a list looks like."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def shapes(reply: Reply) -> list[str]:
    """Of each event of a stream, or of the whole reply."""
    if reply.headers["content-type"] != "text/event-stream":
        return [str(shape(reply.json))]
    chunks = [str(shape(chunk)) for chunk in reply.chunks]
    return chunks + [event for event in reply.events if event in ("null", "[DONE]")]


def header_names(reply: Reply) -> list[str]:
    return list(reply.headers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO),
        (CHAT, HELLO | {"n": 2}),
        (CHAT, HELLO | {"logprobs": True, "top_logprobs": 1}),
        (CHAT, HELLO | {"stream": True}),
        (CHAT, HELLO | {"stream": True} | USAGE),
        (CHAT, HELLO | {"stream": True, "logprobs": True, "top_logprobs": 1}),
        (CHAT, HELLO | {"stream": True, "timings_per_token": True, "return_progress": True} | USAGE),
        (TEXT, {"prompt": "hello", "max_tokens": 3, "temperature": 0}),
        (TEXT, {"prompt": ["hello", "bye"], "max_tokens": 3, "temperature": 0}),
        (TEXT, {"prompt": "hello", "max_tokens": 3, "temperature": 0, "logprobs": 1}),
        (TEXT, {"prompt": "hello", "max_tokens": 3, "temperature": 0, "stream": True}),
        (TEXT, {"prompt": "hello", "max_tokens": 3, "temperature": 0, "stream": True, "logprobs": 1} | USAGE),
        (TEXT, {"prompt": "hello", "max_tokens": 2, "temperature": 0, "stream": True, "return_progress": True}),
        (EMBED, {"input": "hello", "model": "any"}),
        (EMBED, {"input": ["hello", [1, 2]], "encoding_format": "base64"}),
        ("/tokenize", {"content": "hello world"}),
    ],
)
def test_a_reply_looks_like_the_real_one(real: BareEngine, fake: FakeLlama, path: str, body: dict[str, object]) -> None:
    theirs, ours = ask(real.port, path, body), ask(fake.port, path, body)
    assert shapes(ours) == shapes(theirs)
    assert header_names(ours) == header_names(theirs)
    assert ours.end == theirs.end == "fin"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO | {"stream": True, "n": 2} | USAGE),
        (TEXT, {"prompt": ["hello", "bye", "c"], "max_tokens": 3, "temperature": 0, "stream": True}),
    ],
)
def test_interleaved_choices_look_like_the_real_ones(
    real: BareEngine, fake: FakeLlama, path: str, body: dict[str, object]
) -> None:
    # Which choice comes first is chance in the real one.
    assert sorted(shapes(ask(fake.port, path, body))) == sorted(shapes(ask(real.port, path, body)))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/nothing", {}),
        (CHAT, {}),
        (CHAT, {"messages": "x"}),
        (CHAT, {"messages": [{"role": "user"}]}),
        (CHAT, HELLO | {"n": 3}),
        (CHAT, HELLO | {"n": "x"}),
        (CHAT, HELLO | {"top_logprobs": 2}),
        (CHAT, HELLO | {"tool_choice": "wrong", "tools": [{"type": "function", "function": {"name": "f"}}]}),
        (CHAT, HELLO | {"messages": [{"role": "user", "content": LONG}]}),
        (TEXT, {"prompt": LONG, "stream": True}),
        (TEXT, {}),
        (TEXT, {"prompt": []}),
        (EMBED, {}),
        (EMBED, {"input": []}),
        (EMBED, {"input": ""}),
        (EMBED, {"input": "hello", "encoding_format": "x"}),
        (EMBED, {"input": LONG}),
    ],
)
def test_a_refusal_is_the_real_one(real: BareEngine, fake: FakeLlama, path: str, body: dict[str, object]) -> None:
    theirs, ours = ask(real.port, path, body), ask(fake.port, path, body)
    assert ours.status == theirs.status >= 400
    # Tokens are counted in another way.
    assert re.sub(rb"\d+ tokens", b"N tokens", ours.body.split(b',"n_prompt')[0]) == re.sub(
        rb"\d+ tokens", b"N tokens", theirs.body.split(b',"n_prompt')[0]
    )
    assert shapes(ours) == shapes(theirs)
    assert header_names(ours) == header_names(theirs)


def test_a_body_that_is_not_json_is_refused_alike(real: BareEngine, fake: FakeLlama) -> None:
    replies = [ask(port, CHAT, ["not an object"]) for port in (fake.port, real.port)]
    assert [reply.status >= 400 for reply in replies] == [True, True]
    assert shapes(replies[0]) == shapes(replies[1])


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/v1/models", "/props"])
def test_what_it_tells_of_itself_looks_like_the_real_one(real: BareEngine, fake: FakeLlama, path: str) -> None:
    theirs, ours = ask(real.port, path), ask(fake.port, path)
    assert header_names(ours) == header_names(theirs)
    told, wanted = ours.json, theirs.json
    if path == "/props":
        # Of the sampling parameters the fake has a few only.
        assert is_part(
            told["default_generation_settings"].pop("params"), wanted["default_generation_settings"].pop("params")
        )
    assert shape(told) == shape(wanted)


def is_part(some: dict[str, object], more: dict[str, object]) -> bool:
    """Whether the keys stand in the other in the same order, with values of the same kind."""
    return [(key, shape(more[key])) for key in more if key in some] == shape(some)


@pytest.mark.parametrize("used", [False, True])
def test_slots_look_like_the_real_ones(used: bool) -> None:
    with BareEngine() as real, FakeLlama() as fake:
        if used:
            for port in (real.port, fake.port):
                ask(port, CHAT, HELLO | {"n": 2})
        theirs, ours = (ask(port, "/slots").json for port in (real.port, fake.port))
    for slot in (*theirs, *ours):
        slot.pop("params", None)
    assert [shape(slot) for slot in ours] == [shape(slot) for slot in theirs]


def test_metrics_have_the_real_names_kinds_and_order(real: BareEngine, fake: FakeLlama) -> None:
    theirs, ours = ask(real.port, "/metrics"), ask(fake.port, "/metrics")
    named = re.compile(rb"^# TYPE (.*)$", re.MULTILINE)
    assert named.findall(ours.body) == named.findall(theirs.body)
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert header_names(ours) == header_names(theirs)


def test_keys_loading_and_what_is_switched_off_are_told_alike() -> None:
    bare = FakeLlama(api_key="sesame", embeddings=False, metrics=False, load_s=3600)
    with BareEngine(everything=False, api_keys=("sesame",)) as real, bare as fake:
        assert real.loading
        loading = ask(fake.port, "/health")
        assert {reply.raw for reply in real.loading} == {loading.raw}
        fake.set(load_s=0)
        for path, body in (("/nothing", None), ("/props", None), ("/metrics", None), (EMBED, {"input": "a"})):
            assert ask(fake.port, path, body).raw == ask(real.port, path, body).raw
        for path, body in (("/nothing", None), ("/metrics", None), (EMBED, {"input": "a"})):
            with_key = [ask(port, path, body, Authorization="Bearer sesame").raw for port in (fake.port, real.port)]
            assert with_key[0] == with_key[1]
