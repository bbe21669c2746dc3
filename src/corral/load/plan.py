"""What a load test sends."""

from dataclasses import dataclass
from typing import Any

from corral.core.call import Endpoint
from corral.core.errors import ConfigError
from corral.upstream.address import Address

PROMPT = "Write one short sentence about horses."


@dataclass(frozen=True, slots=True)
class Plan:
    """How many requests of which kind go where; the defaults are those of the command line."""

    url: str = "http://127.0.0.1:8000"
    requests: int = 40
    concurrency: int = 8
    model: str = "llama"
    api_key: str = "local"
    endpoint: Endpoint = Endpoint.CHAT
    stream: bool = True
    prompt: str = PROMPT
    max_tokens: int = 64
    # For one request from its first byte to the last of its answer.
    timeout_s: float = 300.0

    @property
    def address(self) -> Address:
        return Address.parse(self.url)

    @property
    def streams(self) -> bool:
        """Embeddings are never streamed."""
        return self.stream and self.endpoint is not Endpoint.EMBEDDINGS

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of each request; a stream is asked for its usage, which the tokens are counted by."""
        if self.endpoint is Endpoint.EMBEDDINGS:
            return {"model": self.model, "input": self.prompt}
        asked: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        if self.endpoint is Endpoint.CHAT:
            asked["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            asked["prompt"] = self.prompt
        if self.stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        return asked


def check(plan: Plan) -> None:
    """Raise ConfigError naming every option that cannot be meant."""
    problems = [
        f"--{name} must be more than 0"
        for name, value in (
            ("requests", plan.requests),
            ("concurrency", plan.concurrency),
            ("max-tokens", plan.max_tokens),
            ("timeout", plan.timeout_s),
        )
        if value <= 0
    ]
    if not plan.api_key.isascii() or not plan.api_key.isprintable():
        problems.append("--api-key holds characters that no HTTP header can carry")
    try:
        Address.parse(plan.url)
    except ValueError as error:
        problems.append(f"--url: {error}")
    if problems:
        raise ConfigError(problems)
