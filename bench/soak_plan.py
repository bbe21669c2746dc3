"""What a soak asks for: each request, the fault that meets it, the manners of its client, and what may come of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

from corral_process import KEY

MODEL = "soak"
REPLICAS = 3
# What stands in a prompt before the orders for the stub, and what ends them.
MARK, MARK_END = "soak ", "\n"


class Kind(Enum):
    """What is asked for; the value is the path."""

    STREAM = ("chat, streamed", "/v1/chat/completions")
    GATHERED = ("chat, gathered", "/v1/chat/completions")
    WHOLE = ("chat, whole", "/v1/chat/completions")
    TEXT_STREAM = ("completion, streamed", "/v1/completions")
    TEXT = ("completion", "/v1/completions")
    EMBEDDINGS = ("embeddings", "/v1/embeddings")
    MALFORMED = ("malformed body", "/v1/chat/completions")
    WRONG_KEY = ("wrong key", "/v1/chat/completions")
    UNKNOWN_MODEL = ("unknown model", "/v1/chat/completions")
    MODELS = ("list of models", "/v1/models")

    def __init__(self, title: str, path: str) -> None:
        self.title = title
        self.path = path

    @property
    def streamed(self) -> bool:
        return self in (Kind.STREAM, Kind.TEXT_STREAM)


class Manners(Enum):
    """How the client behaves."""

    PATIENT = "patient"
    SLOW = "reads slowly"
    STUCK = "stops reading"
    HALF_CLOSES = "half-closes"
    LEAVES_IN_HEAD = "leaves in the head"
    LEAVES_IN_BODY = "leaves in the body"
    LEAVES_SOON = "leaves while it waits"
    LEAVES_AT_FIRST_BYTE = "leaves at the first byte"
    LEAVES_WITHIN = "leaves in the answer"

    @property
    def stays(self) -> bool:
        return self in (Manners.PATIENT, Manners.SLOW)


@dataclass(frozen=True, slots=True)
class Fault:
    """What the stub does wrong. ``statuses``: what a client may be told in the end; none where it does no harm."""

    name: str
    weight: float
    statuses: frozenset[int] = frozenset()


def _fault(name: str, weight: float, *statuses: int) -> Fault:
    return Fault(name, weight, frozenset(statuses))


# The weights are shares of all requests that reach the stub, in per cent.
FAULTS = (
    _fault("", 80),
    # Harmless.
    _fault("huge", 0.7),
    _fault("trickle", 0.8),
    _fault("split", 1.5),
    _fault("pings", 1.5),
    _fault("crlf", 1),
    _fault("slow", 1.5),
    _fault("pause", 0.4),
    # Instead of a reply.
    _fault("reset", 1.2, 502),
    _fault("close", 1.2, 502),
    _fault("head_cut", 0.8, 502),
    _fault("garbage", 0.8, 502),
    _fault("loading", 0.3, 503),
    _fault("status_500", 0.8, 502),
    _fault("status_502", 0.8, 502),
    _fault("status_400", 0.8, 400),
    _fault("wrong_type", 0.6, 502),
    _fault("silence", 0.08, 504),
    _fault("head_then_silence", 0.08, 504),
    # Within it.
    _fault("rst", 1.2, 502),
    _fault("fin", 1.2, 502),
    _fault("truncate", 0.8, 502),
    _fault("malformed", 0.8, 502),
    _fault("error_event", 0.8, 502),
    _fault("stall", 0.12, 504),
)

KINDS = {
    Kind.STREAM: 40, Kind.GATHERED: 12, Kind.WHOLE: 14, Kind.TEXT_STREAM: 6, Kind.TEXT: 4, Kind.EMBEDDINGS: 10,
    Kind.MALFORMED: 5, Kind.WRONG_KEY: 4, Kind.UNKNOWN_MODEL: 3, Kind.MODELS: 2,
}  # fmt: skip
MANNERS = {
    Manners.PATIENT: 77, Manners.SLOW: 4, Manners.STUCK: 0.05, Manners.HALF_CLOSES: 2, Manners.LEAVES_IN_HEAD: 2,
    Manners.LEAVES_IN_BODY: 2, Manners.LEAVES_SOON: 6, Manners.LEAVES_AT_FIRST_BYTE: 4, Manners.LEAVES_WITHIN: 3,
}  # fmt: skip
MALFORMED = (
    b"", b"{", b"[]", b"null", b'{"messages": 1}', b'{"model": "soak"}', b'{"messages": [{"role": "user"}]}',
    b"\xff\xfe", b'{"messages": [' * 100, b'{"model": "soak", "messages": [], "n": "x"}',
)  # fmt: skip

HUGE_BYTES = 256 * 1024
# Where every replica has the fault, where two have it, else one.
ALL_SHARE, TWO_SHARE = 0.2, 0.35


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, and what may come of it."""

    number: int
    kind: Kind
    manners: Manners
    fault: Fault
    # Every replica does it wrong, so that no retry helps.
    everywhere: bool
    request: bytes
    request_id: str
    tokens: int
    # The client asks for the usage chunk of a stream.
    usage: bool
    # What embeddings are asked for.
    texts: tuple[str, ...]
    # A random share: how far into its request or answer a client leaves, and how long it waits.
    moment: float
    new_connection: bool

    @property
    def statuses(self) -> frozenset[int]:
        """What the answer may say, but for 503, which any request can meet while no replica is ready."""
        match self.kind:
            case Kind.MALFORMED:
                return frozenset({400})
            case Kind.WRONG_KEY:
                return frozenset({401})
            case Kind.UNKNOWN_MODEL:
                return frozenset({404})
        if not self.fault.statuses:
            return frozenset({200})
        return self.fault.statuses if self.everywhere else self.fault.statuses | {200}

    @property
    def text(self) -> str:
        """What the model says."""
        return text_of(self.number, self.tokens) + ("x" * HUGE_BYTES if self.fault.name == "huge" else "")

    @property
    def completion_tokens(self) -> int:
        return self.tokens + (self.fault.name == "huge")


def text_of(number: int, tokens: int) -> str:
    """Every token names its request, so that one that went astray is seen."""
    return "".join(token_of(number, each) for each in range(tokens))


def token_of(number: int, token: int) -> str:
    return f" {number}.{token}"


def vector_of(text: str) -> list[float]:
    """The stub's embedding of a text."""
    return [float(len(text)), float(sum(text.encode()) % 997), 0.5]


def make(seed: int, number: int) -> Plan:
    """The request of this number: the same for the same seed."""
    random = Random(f"{seed}/{number}")
    kind = random.choices(list(KINDS), list(KINDS.values()))[0]
    manners = random.choices(list(MANNERS), list(MANNERS.values()))[0]
    fault = random.choices(FAULTS, [each.weight for each in FAULTS])[0]
    if kind in (Kind.WHOLE, Kind.EMBEDDINGS) and fault.name in ("error_event", "huge"):
        # There are no events, and a short reply is short.
        fault = FAULTS[0]
    if manners in (Manners.SLOW, Manners.STUCK) and kind.streamed:
        fault = next(each for each in FAULTS if each.name == "huge")
    share = random.random()
    # What the client is to get must not depend on the replica.
    everywhere = share < ALL_SHARE or fault.name == "huge"
    sick = REPLICAS if everywhere else 2 if share < TWO_SHARE else 1
    tokens = random.randint(1, 12) if kind is Kind.WHOLE else random.randint(1, 40)
    orders = {
        "number": number,
        "tokens": tokens,
        "fault": fault.name,
        "on": random.sample(range(REPLICAS), sick),
        "at": random.randint(0, tokens),
    }
    usage = random.random() < 0.5
    prompt = f"{MARK}{json.dumps(orders)}{MARK_END}"
    texts = tuple(f"{prompt}{place}" for place in range(random.choice((1, 1, 2, 3, 12))))
    request_id = f"soak-{seed}-{number}"
    body = _body(kind, random, texts, usage=usage, tokens=tokens)
    key = f"wrong-{random.getrandbits(64):x}" if kind is Kind.WRONG_KEY else KEY
    return Plan(
        number=number,
        kind=kind,
        manners=manners,
        fault=fault,
        everywhere=everywhere,
        request=_request(kind, body, key, request_id),
        request_id=request_id,
        tokens=tokens,
        usage=usage,
        texts=texts,
        moment=random.random(),
        new_connection=random.random() < 0.2,
    )


def _request(kind: Kind, body: bytes, key: str, request_id: str) -> bytes:
    method = "GET" if kind is Kind.MODELS else "POST"
    lines = [f"{method} {kind.path} HTTP/1.1", "Host: soak", f"Authorization: Bearer {key}"]
    lines.append(f"X-Request-Id: {request_id}")
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _body(kind: Kind, random: Random, texts: tuple[str, ...], *, usage: bool, tokens: int) -> bytes:
    if kind is Kind.MODELS:
        return b""
    if kind is Kind.MALFORMED:
        return random.choice(MALFORMED)
    if kind is Kind.EMBEDDINGS:
        return _json({"model": MODEL, "input": texts if len(texts) > 1 else texts[0]})
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 16 if kind is Kind.WHOLE else tokens + 17}
    if kind is Kind.UNKNOWN_MODEL:
        asked["model"] = f"model-{random.getrandbits(64):x}"
    if kind in (Kind.TEXT, Kind.TEXT_STREAM):
        asked["prompt"] = texts[0]
    else:
        asked["messages"] = [{"role": "system", "content": "x" * random.randint(1, 400)}, _user(texts[0])]
    if kind.streamed:
        asked |= {"stream": True, "stream_options": {"include_usage": usage}}
    return _json(asked)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
