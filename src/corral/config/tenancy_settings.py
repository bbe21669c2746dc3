"""The settings of limits, of the store of keys and usage, and of what several Corrals share."""

from pathlib import Path

from pydantic import Field

from corral.config.kinds import (
    Away,
    Count,
    DatabaseUrl,
    FilePath,
    LimitNames,
    Positive,
    PositiveDuration,
    Section,
    Size,
    Text,
    ValkeyUrl,
)


class LimitSettings(Section, frozen=True):
    """How much a client may ask for, where its key says nothing else; 0 is no limit."""

    requests: Count = Field(default=600, description="Requests a client may make in a window; 0 is no limit.")
    window_s: PositiveDuration = Field(default=60.0, description="The length of the sliding window.")
    tokens: Count = Field(
        default=0,
        description="Tokens, of prompts and replies together, that a client may use in a window; 0: no limit.",
    )
    in_flight: Count = Field(default=0, description="Requests of a client that may be under way; 0: no limit.")
    tokens_day: Count = Field(default=0, description="Tokens a client may use in a day (UTC); 0: no limit.")
    tokens_month: Count = Field(default=0, description="Tokens a client may use in a month (UTC); 0: no limit.")
    max_tokens: Count = Field(default=0, description="The largest `max_tokens` a request may ask for; 0: no limit.")
    max_context: Count = Field(
        default=0, description="The most tokens that a prompt and its reply may have together; 0: no limit."
    )
    shadow: LimitNames = Field(
        default=(),
        description="Limits that refuse nothing yet: what they would refuse is logged and counted.",
        examples=["tokens"],
    )


class StoreSettings(Section, frozen=True):
    """Where keys and usage are kept."""

    file: FilePath = Field(
        default=Path("run/corral.db"),
        description="The SQLite database of keys and usage. It is used when it exists; `corral keys create` makes it.",
    )
    url: DatabaseUrl | None = Field(
        default=None,
        description="A PostgreSQL database in place of the file. Environment only.",
        examples=["postgresql://corral:PASSWORD@127.0.0.1/corral"],
    )
    sync_s: PositiveDuration = Field(
        default=0.5, description="How often a Corral looks whether another one, or a command, has changed keys."
    )

    @property
    def where(self) -> str:
        """Which store, for people; nothing of the URL, which holds a password."""
        return str(self.file) if self.url is None else "PostgreSQL"

    @property
    def used(self) -> bool:
        """There is a store: a PostgreSQL is set, the file exists, or nobody can tell whether it does."""
        try:
            return self.url is not None or self.file.exists()
        except OSError:
            return True


class UsageSettings(Section, frozen=True):
    """What is remembered of requests: who used what; needs a store."""

    journal_dir: FilePath = Field(
        default=Path("run/journal"),
        description="Where each request leaves a line before its answer ends; the store takes them from there. "
        "On a disk of this machine.",
    )
    journal_bytes: Size = Field(
        default=64 * 2**20, description="The largest file of the journal; then a new one begins."
    )
    ingest_s: PositiveDuration = Field(default=1.0, description="How often the store takes what the journal has.")
    keep_days: Count = Field(default=30, description="How long single requests are kept; 0: for ever.")
    keep_sums_days: Count = Field(default=800, description="How long the sums by hour are kept; 0: for ever.")
    currency: Text | None = Field(
        default=None, description="What the prices of models are in; any word.", examples=["EUR"]
    )


class ValkeySettings(Section, frozen=True):
    """What several Corrals share: limits, and the slots of llama-servers that all of them use."""

    url: ValkeyUrl | None = Field(
        default=None,
        description="A Valkey or Redis. Environment only.",
        examples=["redis://:PASSWORD@127.0.0.1:6379/0"],
    )
    away: Away = Field(
        default="refuse",
        description="While Valkey cannot be reached: `refuse` requests (503), or `share`: count in memory, "
        "with limits and slots divided by `valkey.corrals`.",
    )
    corrals: Positive = Field(default=1, description="How many Corrals share limits and slots while Valkey is away.")
    lease_s: PositiveDuration = Field(
        default=15.0, description="How long what a Corral holds stays taken after the Corral has died."
    )
    timeout_s: PositiveDuration = Field(default=1.0, description="How long Valkey may take to answer.")
    prefix: Text = Field(default="corral", description="What the names of all keys in Valkey begin with.")
