"""The settings: one frozen model per section, with their defaults, limits and descriptions.

Attributes carry their unit (``connect_s``, ``body_bytes``); in corral.yaml and in
environment names ``_s`` is left out and ``_bytes`` is ``_size``, because values
carry the unit there (``connect: 5s``, ``body_size: 32MiB``).
"""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from corral.config.keys import ApiKey
from corral.config.kinds import (
    BalanceName,
    Count,
    Duration,
    FilePath,
    Flag,
    Host,
    Level,
    Origins,
    PathsByName,
    Port,
    Positive,
    PositiveDuration,
    Secret,
    Section,
    Size,
    Weights,
    Words,
)
from corral.config.model_settings import ModelSettings
from corral.config.problems import Mistake
from corral.config.tenancy_settings import LimitSettings, StoreSettings, UsageSettings, ValkeySettings
from corral.config.time_settings import TimeoutSettings
from corral.core.principal import Priority


class ServerSettings(Section, frozen=True):
    """The door that clients come to."""

    host: Host = Field(default="127.0.0.1", description="The address to listen on; 0.0.0.0 is every IPv4 address.")
    port: Port = Field(default=8000, description="The port to listen on; 0 takes any free one.")
    cors_origins: Origins = Field(
        default=(),
        description="Origins whose pages may call Corral from a browser; `*` is every origin.",
        examples=["https://app.example.org"],
    )
    head_timeout_s: PositiveDuration = Field(
        default=20.0, description="How long a client may take to send a request's head, from connecting on."
    )
    body_bytes: Size = Field(default=32 * 2**20, description="The largest request body.")
    body_timeout_s: PositiveDuration = Field(default=60.0, description="How long a client may take to send a body.")
    keep_alive_s: PositiveDuration = Field(default=75.0, description="How long an idle client connection stays open.")
    connections: Count = Field(
        default=0,
        description="Client connections at a time, more get 503; 0: half as many as Corral may open files.",
    )
    comment_interval_s: PositiveDuration = Field(
        default=15.0,
        description="A stream that has sent nothing for so long gets an SSE comment, which keeps proxies patient.",
    )
    client_stall_s: PositiveDuration = Field(
        default=60.0, description="A client that takes nothing of its answer for so long is cut off."
    )
    grace_s: Duration = Field(default=30.0, description="How long running requests may go on at shutdown.")
    unready_s: Duration = Field(
        default=0.0,
        description="How long `/health` says 503 before the listener closes at shutdown, for load balancers.",
    )
    watch: Flag = Field(
        default=False, description="Read the settings anew when their files (`corral.yaml`, `.env`, keys) change."
    )


class AuthSettings(Section, frozen=True):
    """Who may come in."""

    keys: tuple[ApiKey, ...] = Field(default=(), description="Keys, hashed; from the environment only.")
    allow_anonymous: Flag = Field(
        default=False, description="Serve without any key also when other machines can reach the listener."
    )


class QueueSettings(Section, frozen=True):
    """Waiting in front of a model."""

    length: Count = Field(default=100, description="Requests that may wait for a model; more get 503 at once.")
    per_client: Count = Field(
        default=80, description="Requests of one client that may wait for a model; more get 503 at once."
    )
    interactive: Words = Field(
        default=(), description="Clients whose requests go before all others.", examples=["team_a"]
    )
    batch: Words = Field(
        default=(), description="Clients whose requests go when nobody else waits.", examples=["nightly"]
    )
    weights: Weights = Field(
        default=(),
        description="Clients that get another share than 1 beside the others of their class.",
        examples=["team_a=2"],
    )
    lift_s: PositiveDuration = Field(
        default=30.0,
        description="A client that got nothing for so long because of higher classes goes before them, once.",
    )
    patience_s: Duration = Field(default=60.0, description="How long a request waits for a free slot.")
    batch_patience_s: Duration = Field(
        default=600.0, description="How long a request of a client in `queue.batch` waits for a free slot."
    )
    unready_patience_s: Duration = Field(
        default=30.0, description="How long a request waits for a model that is loading or restarting."
    )

    @field_validator("batch", mode="after")
    @classmethod
    def _one_class_each(cls, batch: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        if both := sorted({*batch} & {*others.data.get("interactive", ())}):
            raise Mistake(f"the client {both[0]} is in queue.interactive too", "name it in one of them")
        return batch

    def priority_of(self, client: str) -> Priority:
        if client in self.interactive:
            return Priority.INTERACTIVE
        return Priority.BATCH if client in self.batch else Priority.DEFAULT

    def weight_of(self, client: str) -> float:
        return dict(self.weights).get(client, 1.0)


class RoutingSettings(Section, frozen=True):
    """Which of a model's llama-servers takes a request."""

    balance: BalanceName = Field(
        default="prefix",
        description="`prefix`: the one that has most of the prompt in its cache, its load considered; `least_busy`; "
        "`round_robin`; `sticky`: always the same for a `prompt_cache_key`, else for a client.",
    )


class RetrySettings(Section, frozen=True):
    """Trying again what failed before the first byte reached the client, and going on with what broke off later."""

    attempts: Positive = Field(default=4, description="Tries in all; 1 never tries again.")
    backoff_s: Duration = Field(
        default=0.25, description="The pause before the second try; it doubles with each further one."
    )
    backoff_max_s: Duration = Field(default=4.0, description="The longest pause between tries.")
    deadline_s: Duration = Field(
        default=30.0,
        description="No retry begins later than this after the first try; waiting for a slot has limits of its own.",
    )
    resumes: Count = Field(
        default=4,
        description="How often an answer that broke off may be continued by another replica, or by the same one when "
        "it is back; 0 tells the client at once.",
    )


class RequestSettings(Section, frozen=True):
    """What requests may contain, and what is put in where they say nothing."""

    default_max_tokens: Positive = Field(default=4096, description="`max_tokens` of a request that names none.")
    whole_max_tokens: Count = Field(
        default=16,
        description="Replies of at most so many tokens to short prompts are fetched in one piece, "
        "not gathered from a stream.",
    )
    remote_images: Flag = Field(
        default=False,
        description="Let llama-server fetch images by URL. It can then reach whatever its machine can reach.",
    )
    max_inputs: Positive = Field(
        default=2048, description="Inputs in one embeddings request, or prompts in one completion."
    )
    # orjson writes at most 254 levels.
    max_depth: Positive = Field(default=64, le=250, description="The deepest nesting of JSON in a body; at most 250.")


class LlamaSettings(Section, frozen=True):
    """The llama-servers that Corral or the launcher scripts start, and how to speak to the others."""

    threads: Positive | None = Field(
        default=None, description="CPU threads for generating; llama.cpp chooses if not set.", examples=[20]
    )
    threads_batch: Positive | None = Field(
        default=None, description="CPU threads for reading prompts; as `threads` if not set.", examples=[20]
    )
    ctx: Count | None = Field(
        default=None,
        description="Context in tokens, shared by the slots; 0 or not set is the model's own.",
        examples=[4096],
    )
    n_batch: Positive | None = Field(
        default=None,
        description="Tokens of a prompt that are read in one step, and of an embedding input at most; "
        "not set: 1024 with `embeddings: true` or a model that is made for them, else 64 with the embedded engine "
        "and llama-server's own default with a native one, which may have a GPU.",
        examples=[1024],
    )
    parallel: Positive | None = Field(
        default=None,
        description="Slots: requests answered at the same time; llama.cpp's default if not set.",
        examples=[4],
    )
    gpu_layers: Count | None = Field(
        default=None,
        description="Layers of the model that a GPU takes; llama.cpp's default if not set: as many as fit.",
        examples=[99],
    )
    cache_ram_bytes: Size | None = Field(
        default=None,
        description="Memory in which a llama-server keeps prompts that it has read; its default, 8 GiB, if not set.",
        examples=["2GiB"],
    )
    embeddings: Flag | None = Field(
        default=None,
        description="Serve embeddings: true, of inputs of up to `n_batch` tokens; false, none; "
        "not set, of what fits into the `n_batch` that is best for chat.",
        examples=["true"],
    )
    server_bin: FilePath | None = Field(
        default=None,
        description="The llama-server to start; else one on the PATH, else the embedded engine.",
        examples=["/opt/llama.cpp/llama-server"],
    )
    extra_args: Words = Field(
        default=(), description="Further arguments for llama-server, as they are.", examples=["--flash-attn,on"]
    )
    start_timeout_s: PositiveDuration = Field(default=600.0, description="How long a model may take to load.")
    start_stall_s: PositiveDuration = Field(
        default=120.0,
        description="How long a model that loads may show no sign of life: no output, no more memory, no computing.",
    )
    stop_grace_s: Duration = Field(
        default=10.0, description="How long a llama-server may take to stop before it is killed."
    )
    log_dir: FilePath | None = Field(
        default=Path("run/logs"),
        description="Where llama-server's output goes, a file each; `null`: only its last lines are kept, in memory.",
    )
    log_bytes: Size = Field(
        default=10 * 2**20, description="The largest log file of a llama-server; then it is rotated."
    )
    api_key: Secret | None = Field(
        default=None, description="The key that upstreams ask for. Environment only.", examples=["KEY"]
    )
    model_paths: PathsByName = Field(
        default=(),
        description="Launchers: the file of each model in `MODEL_UPSTREAMS`.",
        examples=["llama-8b=./models/llama-8b.gguf"],
    )
    model_path: FilePath | None = Field(
        default=None, description="Launchers: the file of the only model.", examples=["./models/llama-8b.gguf"]
    )
    enabled: Words = Field(
        default=(), description="Launchers: start only these models; empty is all of them.", examples=["llama-8b"]
    )


class FleetSettings(Section, frozen=True):
    """Which of the llama-servers that Corral starts are loaded at a time."""

    on_demand: Flag = Field(
        default=False,
        description="Start the llama-server of a model when a request asks for it; false: all of them at the start.",
    )
    memory_bytes: Size | None = Field(
        default=None,
        description="Memory that these llama-servers may take together: one that is to start waits until idle ones "
        "have made room; no limit if not set.",
        examples=["24GiB"],
    )
    idle_ttl_s: Duration = Field(
        default=0.0, description="A model that is started on demand ends when it was idle for so long; 0: never."
    )
    turn_s: PositiveDuration = Field(
        default=5.0,
        description="When no model becomes idle for so long, one takes no further requests until it has made room "
        "for the one that waits.",
    )


class LogSettings(Section, frozen=True):
    """What Corral tells about itself."""

    level: Level = Field(default="info", description="debug, info, warning or error.")


# What serves when nothing names a model: llama-server at its own default address.
DEFAULT_MODEL = "llama"
DEFAULT_URL = "http://127.0.0.1:8080"


class Config(Section, frozen=True):
    """Every setting. ``load`` makes it and checks what a single value cannot show: files, repeated names, exposure."""

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    queue: QueueSettings = QueueSettings()
    routing: RoutingSettings = RoutingSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()
    requests: RequestSettings = RequestSettings()
    llama: LlamaSettings = LlamaSettings()
    fleet: FleetSettings = FleetSettings()
    models: tuple[ModelSettings, ...] = (ModelSettings(name=DEFAULT_MODEL, upstreams=(DEFAULT_URL,)),)
    any_model: Flag = Field(
        default_factory=lambda others: len(others.get("models", ())) == 1,
        description="Serve every model name with the only model; without it other names get 404. "
        "If not set: true with `LLAMA_BASE_URL` or one `--model`, false with `MODEL_UPSTREAMS` or `models`.",
    )
    store: StoreSettings = StoreSettings()
    usage: UsageSettings = UsageSettings()
    valkey: ValkeySettings = ValkeySettings()
    logs: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _any_model_has_one_to_go_to(self) -> Self:
        if self.any_model and len(self.models) != 1:
            raise Mistake(f"there are {len(self.models)} models to choose from", "name one model, or write false")
        return self
