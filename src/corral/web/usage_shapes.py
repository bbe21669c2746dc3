"""The answers of the usage routes."""

from pydantic import BaseModel, Field

from corral.core.usage_report import By, Every


class FirstToken(BaseModel):
    """Times to the first token, in seconds, each off by two percent at most; null where none came."""

    p50: float | None
    p90: float | None
    p99: float | None


class UsageLine(BaseModel):
    """What requests came to in one period, of one client, key or model."""

    period: str | None = Field(default=None, description="`2026-11-25 17:00`, `2026-11-25` or `2026-11`, in UTC.")
    client: str | None = None
    key: str | None = Field(default=None, description="The id of a key in the store; empty for those of the settings.")
    model: str | None = None
    requests: int
    outcomes: dict[str, int] = Field(description="How many requests ended in which way, as in the log.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Those of the prompts that were in a cache.")
    completion_tokens: int
    total_tokens: int
    slot_seconds: float = Field(description="How long slots were held.")
    cost: float
    time_to_first_token: FirstToken


class UsageReply(BaseModel):
    """Past usage. The store is some seconds behind the requests."""

    object: str = "usage"
    since: float = Field(description="Unix time; the hour that it falls into counts whole.")
    until: float
    by: By | None
    every: Every | None
    currency: str | None = Field(description="Of the costs: `usage.currency`.")
    data: list[UsageLine]
