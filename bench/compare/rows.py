"""The rows of the benchmark: what is asked, by how many, and what counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from compare.processes import KEY, MODEL

PROMPT = "Tell me in a few words what a horse eats in winter, and why."
INPUTS = ["a horse in a field", "hay and oats", "the gate is open", "dust on the road"]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of load: a request, and how often it is asked."""

    name: str
    title: str
    fields: Mapping[str, object]
    expected: tuple[str, ...]
    connections: int = 32
    path: str = "/v1/chat/completions"
    # Times the seconds of other rows.
    longer: float = 1.0
    # New streams join one after another, not all in the same moment.
    ramp_ms: int = 0
    # At a fixed rate below what the proxies can do; a share of the rate that the row of this name reached.
    below: str = ""

    @property
    def unpaced(self) -> bool:
        """Whether the row is as fast as the proxy is."""
        return not self.below and not self.ramp_ms

    def arguments(self, port: int, seconds: float, rate: float = 0) -> list[str]:
        """The load generator's command line."""
        options = {
            "--port": port,
            "--path": self.path,
            "--body": json.dumps({"model": MODEL, **self.fields}),
            "--connections": self.connections,
            "--seconds": seconds * self.longer,
            "--ramp-ms": self.ramp_ms,
            "--rate": rate,
            "--key": KEY,
        }
        return [*(text for pair in options.items() for text in map(str, pair)), *self.expected]


def chat(tokens: int, *, stream: bool = False, pace_ms: int = 0) -> dict[str, object]:
    """A chat request; the pace is told to the stub in the prompt, which every proxy passes on."""
    prompt = f"pace={pace_ms} {PROMPT}" if pace_ms else PROMPT
    asked: dict[str, object] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    return {**asked, "temperature": 0.2} | ({"stream": True} if stream else {})


SHORT, LONG = chat(16), chat(100)
STREAM = chat(100, stream=True)
IS_16, IS_100 = ("--tokens", "16"), ("--tokens", "100")

ROWS = [
    Row("whole16", "whole chat replies of 16 tokens, 32 connections", SHORT, IS_16),
    Row("whole100", "whole chat replies of 100 tokens, 32 connections", LONG, IS_100),
    Row("streams", "streams of 100 tokens at full speed, 32 connections", STREAM, IS_100),
    Row(
        "paced",
        "100 streams at 20 ms a token",
        chat(100, stream=True, pace_ms=20),
        IS_100,
        connections=100,
        ramp_ms=1000,
        longer=1.6,
    ),
    Row("single16", "whole chat replies of 16 tokens, one connection", SHORT, IS_16, connections=1),
    Row("single_stream", "streams of 100 tokens, one connection", STREAM, IS_100, connections=1),
    Row("fixed16", "whole chat replies of 16 tokens at a fixed rate", SHORT, IS_16, below="whole16"),
    Row("fixed_streams", "streams of 100 tokens at a fixed rate", STREAM, IS_100, below="streams"),
    Row(
        "embeddings",
        "embeddings of 4 inputs, 384 dimensions, 32 connections",
        {"input": INPUTS},
        ("--vectors", "4"),
        path="/v1/embeddings",
    ),
]


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure: how it is called, how it is written, and whether more of it is better."""

    title: str
    digits: int
    more_is_better: bool = False


HEADLINES = {
    "rate": Headline("requests/s", 0, more_is_better=True),
    "cpu_us": Headline("CPU a request, µs", 0),
    "cpu_us_token": Headline("CPU a token, µs", 1),
    "p50": Headline("p50, ms", 2),
    "p99": Headline("p99, ms", 2),
    "ttft_p50": Headline("TTFT p50, ms", 2),
    "ttft_p99": Headline("TTFT p99, ms", 2),
}
