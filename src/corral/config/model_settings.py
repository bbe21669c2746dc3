"""The settings of one model."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from corral.config.kinds import (
    Count,
    Duration,
    FilePath,
    Flag,
    ModelName,
    ModelNames,
    Positive,
    PositiveDuration,
    Price,
    SecretInFile,
    Section,
    Size,
    Text,
    Url,
    Urls,
    Weight,
    Words,
)
from corral.config.parameters import field_names, fields
from corral.config.problems import Mistake

Fields = Annotated[dict[str, Any], BeforeValidator(fields)]
FieldNames = Annotated[tuple[str, ...], BeforeValidator(field_names)]

# What only a llama-server that Corral starts can have.
STARTED_ONLY = (
    "replicas",
    "ctx",
    "parallel",
    "threads",
    "n_batch",
    "gpu_layers",
    "cache_ram_bytes",
    "extra_args",
    "on_demand",
    "preload",
    "pinned",
    "idle_ttl_s",
    "group",
    "exclusive",
    "memory_bytes",
)


class RemoteSettings(Section, frozen=True):
    """A llama-server that runs already, with what is special about it."""

    url: Url = Field(description="Its URL.", examples=["http://10.0.0.5:8080"])
    weight: Weight = Field(default=1.0, description="Its share of the requests, compared with the other replicas.")
    key_file: SecretInFile | None = Field(
        default=None,
        description="A file that holds the key it asks for; `llama.api_key` if not set.",
        examples=["./upstream.key"],
    )


def _remotes(value: object) -> object:
    """One or several, each a URL or a group of settings."""
    listed = value if isinstance(value, (list, tuple)) else (value,)
    return tuple({"url": each} if isinstance(each, str) else each for each in listed)


Remotes = Annotated[tuple[RemoteSettings, ...], BeforeValidator(_remotes)]


class ModelSettings(Section, frozen=True):
    """A model that clients may name: llama-servers that run already, a file that Corral starts, or both."""

    name: ModelName = Field(
        description="The name clients ask for; a model with a `file` may go without.", examples=["llama-8b"]
    )
    aliases: ModelNames = Field(default=(), description="Further names for it.", examples=["gpt-4o"])
    description: Text | None = Field(
        default=None, description="What it is good for; `/v1/models` tells it.", examples=["a small model for chat"]
    )
    hidden: Flag = Field(
        default=False, description="Serve it to those who know its name; no list and no error message names it."
    )
    upstreams: Urls = Field(
        default=(),
        description="URLs of llama-servers that run already (one: `upstream`).",
        examples=["http://127.0.0.1:8080"],
    )
    remote: Remotes = Field(
        default=(),
        description="The same, each a URL or a group of `url`, `weight` and `key_file`.",
        examples=["http://10.0.0.5:8080"],
    )
    file: FilePath | None = Field(
        default=None,
        description="A GGUF file for which Corral starts a llama-server.",
        examples=["./models/llama-8b.gguf"],
    )
    hf: Text | None = Field(
        default=None,
        description="In place of a `file`: what `corral pull` knows, `ORG/REPO[:QUANT]` on Hugging Face or `smollm2`; "
        "fetched at the start if it is not there.",
        examples=["ggml-org/Qwen3-8B-GGUF:Q4_K_M"],
    )
    replicas: Positive = Field(default=1, le=64, description="How many llama-servers Corral starts for the file.")
    ctx: Count | None = Field(default=None, description="As `llama.ctx`, for this model.", examples=[4096])
    parallel: Positive | None = Field(default=None, description="As `llama.parallel`, for this model.", examples=[4])
    threads: Positive | None = Field(default=None, description="As `llama.threads`, for this model.", examples=[20])
    n_batch: Positive | None = Field(default=None, description="As `llama.n_batch`, for this model.", examples=[512])
    gpu_layers: Count | None = Field(default=None, description="As `llama.gpu_layers`, for this model.", examples=[99])
    cache_ram_bytes: Size | None = Field(
        default=None, description="As `llama.cache_ram_size`, for this model.", examples=["2GiB"]
    )
    extra_args: Words | None = Field(
        default=None, description="As `llama.extra_args`, for this model.", examples=["--flash-attn,on"]
    )
    first_byte_s: PositiveDuration | None = Field(
        default=None, description="As `timeouts.*.first_byte`, for all routes of this model.", examples=["10m"]
    )
    between_tokens_s: PositiveDuration | None = Field(
        default=None, description="As `timeouts.*.between_tokens`, for all routes of this model.", examples=["2m"]
    )
    total_s: PositiveDuration | None = Field(
        default=None, description="As `timeouts.*.total`, for all routes of this model.", examples=["2h"]
    )
    on_demand: Flag | None = Field(
        default=None,
        description="Start it when a request asks for it; `fleet.on_demand` if not set.",
        examples=["true"],
    )
    preload: Flag | None = Field(
        default=None,
        description="Start it together with Corral; if not set: true, but for a model that is started on demand.",
        examples=["true"],
    )
    pinned: Flag = Field(
        default=False, description="Never stop it because others need its memory, or because it is idle."
    )
    idle_ttl_s: Duration | None = Field(
        default=None,
        description="Stop it when it was idle for so long, 0 never; `fleet.idle_ttl` if not set.",
        examples=["15m"],
    )
    group: Text | None = Field(
        default=None, description="Of the models of a group, one is loaded at a time.", examples=["large"]
    )
    exclusive: Flag = Field(default=False, description="Loaded alone: no other started model is loaded beside it.")
    fallback: ModelName | None = Field(
        default=None,
        description="The model that answers when this one cannot, as long as nothing has been answered yet.",
        examples=["llama-1b"],
    )
    defaults: Fields = Field(
        default={},
        description="Request fields that are put in where a request has none of the name.",
        examples=["{temperature: 0.2}"],
    )
    overrides: Fields = Field(
        default={},
        description="Request fields that are put in whatever a request says.",
        examples=["{cache_prompt: true}"],
    )
    strip: FieldNames = Field(
        default=(), description="Request fields that are left out before llama-server sees them.", examples=["seed"]
    )
    memory_bytes: Size | None = Field(
        default=None,
        description="Memory that one of its llama-servers takes; if not set, Corral estimates it, "
        "and measures it once it runs.",
        examples=["6GiB"],
    )
    allow_fields: Words = Field(
        default=(),
        description="Request fields that are refused elsewhere and may pass to this model.",
        examples=["id_slot"],
    )
    default_max_tokens: Positive | None = Field(
        default=None,
        description="`max_tokens` of a request that names none; `requests.default_max_tokens` if not set.",
        examples=[1024],
    )

    price_input: Price | None = Field(
        default=None, description="What a million tokens of prompts cost, in `usage.currency`.", examples=[0.2]
    )
    price_cached: Price | None = Field(
        default=None,
        description="What a million tokens of prompts cost that were in the cache; `price_input` if not set.",
        examples=[0.02],
    )
    price_output: Price | None = Field(
        default=None, description="What a million tokens of replies cost.", examples=[0.6]
    )

    @property
    def remotes(self) -> tuple[RemoteSettings, ...]:
        """All llama-servers that run already, however they are written."""
        return (*(RemoteSettings(url=url) for url in self.upstreams), *self.remote)

    def starts_on_demand(self, others: bool) -> bool:
        """Whether a request starts it; ``others`` is what holds for models that do not say."""
        return others if self.on_demand is None else self.on_demand

    @model_validator(mode="after")
    def _runs_already_or_is_started(self) -> Self:
        if not any((self.upstreams, self.remote, self.file, self.hf)):
            raise Mistake("the model has none of upstream, upstreams, remote, file, hf", "write one of them")
        for one, other in (("upstreams", "remote"), ("file", "hf")):
            if getattr(self, one) and getattr(self, other):
                raise Mistake(f"the model has {one} and {other}", "write one of them")
        urls = [remote.url for remote in self.remotes]
        if len(set(urls)) < len(urls):
            raise Mistake("the model names an upstream twice", "name each llama-server once")
        return self

    @model_validator(mode="after")
    def _only_what_is_started_can_be_stopped(self) -> Self:
        given = [name for name in STARTED_ONLY if getattr(self, name) != ModelSettings.model_fields[name].default]
        if self.file is None and self.hf is None and given:
            name = given[0].removesuffix("_s").replace("_bytes", "_size")
            raise Mistake(f"{name} is for models that Corral starts", f"give the model a file, or leave {name} out")
        return self
