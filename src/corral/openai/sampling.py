"""The fields that chat completions and completions share: OpenAI's, and llama-server's own."""

from typing import Annotated

from annotated_types import Ge, Le, MaxLen

from corral.openai.shapes import (
    ARRAY,
    BY_SHAPE,
    FIRST_ONLY,
    STRING,
    AtMost,
    JsonObject,
    LogitBias,
    Stop,
    Wire,
)

MODEL_CHARS = 256

# A choice is a task of its own in llama-server.
CHOICES = 128

# OpenAI's limits.
METADATA_PAIRS = 16
METADATA_KEY_CHARS = 64
METADATA_VALUE_CHARS = 512

GRAMMAR_CHARS = 64 * 1024
SAMPLERS = 64
SEQUENCE_BREAKERS = 64

# llama-server allocates memory for as many tokens as these windows name,
# 2147483647 included: 9 GB for one request, and its end for another (run on
# b11434). No context is larger than this.
WINDOW_TOKENS = 1_048_576

# For each generated token llama-server would list its whole vocabulary if asked.
PROBABILITIES = 100

INT64 = 2**63

ModelName = Annotated[str, MaxLen(MODEL_CHARS)]
Metadata = Annotated[
    dict[Annotated[str, MaxLen(METADATA_KEY_CHARS)], Annotated[str, MaxLen(METADATA_VALUE_CHARS)]],
    MaxLen(METADATA_PAIRS),
    AtMost(METADATA_PAIRS),
]
SequenceBreakers = Annotated[list[Annotated[str, MaxLen(1024)]], FIRST_ONLY, MaxLen(SEQUENCE_BREAKERS)]
Samplers = Annotated[
    Annotated[str, MaxLen(SAMPLERS), STRING]
    | Annotated[list[Annotated[str, MaxLen(64)]], FIRST_ONLY, MaxLen(SAMPLERS), ARRAY],
    BY_SHAPE,
]
Seed = Annotated[int, Ge(-INT64), Le(INT64 - 1)]
TokenLimit = Annotated[int, Ge(-1), Le(2**31 - 1)]
Window = Annotated[int, Ge(0), Le(WINDOW_TOKENS)]
Fraction = Annotated[float, Ge(0), Le(1)]
Penalty = Annotated[float, Ge(-2), Le(2)]


class StreamOptions(Wire):
    """How a stream is sent."""

    include_usage: bool | None = None
    """Send one more chunk, with the usage of the whole request, before `[DONE]`."""
    include_obfuscation: bool | None = None
    """Accepted and without effect: Corral adds no padding."""


class Addressed(Wire):
    """What every request may carry."""

    model: ModelName | None = None
    """The model to use, by one of the names that `GET /v1/models` lists."""
    user: str | None = None
    """An identifier of the end user; without effect on the reply."""


class Everyday(Addressed):
    """What most requests have, and nothing that could be wrong together with another field, or needs mending."""

    max_tokens: TokenLimit | None = None
    """The most tokens to generate for each choice; -1 or nothing stands for the operator's default."""
    stream: bool | None = None
    """Send the reply in chunks as it is generated, as server-sent events."""
    temperature: Annotated[float, Ge(0), Le(2)] | None = None
    """Randomness; 0 always takes the most probable token."""
    top_p: Fraction | None = None
    """Sample from the most probable tokens that together have this probability."""
    frequency_penalty: Penalty | None = None
    """Penalty for tokens by how often they have appeared."""
    presence_penalty: Penalty | None = None
    """Penalty for tokens that have appeared."""
    seed: Seed | None = None
    """Sample the same way for the same seed; -1 is random."""
    top_k: int | None = None
    """Sample from the K most probable tokens; 0 turns it off."""
    min_p: Fraction | None = None
    """The least probability of a token, relative to the most probable one."""
    repeat_penalty: float | None = None
    """Penalty for repeated tokens; 1 turns it off."""
    cache_prompt: bool | None = None
    """Reuse what the model server remembers of earlier prompts; on by default."""


class LlamaSampling(Wire):
    """llama-server's own fields. They are sent on as they are; fields not listed here are too."""

    typical_p: float | None = None
    """Locally typical sampling; 1 turns it off."""
    top_n_sigma: float | None = None
    """Keep tokens within N standard deviations of the best; negative turns it off."""
    repeat_last_n: Window | None = None
    """How many of the last tokens the penalties look at; 0 turns them off."""
    dynatemp_range: float | None = None
    """The temperature moves within this distance of `temperature`."""
    dynatemp_exponent: float | None = None
    """How entropy maps to the dynamic temperature."""
    xtc_probability: Fraction | None = None
    """The chance of removing the top tokens (XTC)."""
    xtc_threshold: Fraction | None = None
    """Tokens above this probability may be removed (XTC)."""
    dry_multiplier: float | None = None
    """Strength of the DRY repetition penalty; 0 turns it off."""
    dry_base: float | None = None
    """Base of the DRY penalty; it grows with the length of the repetition."""
    dry_allowed_length: Annotated[int, Ge(0)] | None = None
    """Repetitions up to this length are not penalised (DRY)."""
    dry_penalty_last_n: Window | None = None
    """How many of the last tokens DRY looks at."""
    dry_sequence_breakers: SequenceBreakers | None = None
    """Strings at which DRY stops looking for repetitions."""
    mirostat: Annotated[int, Ge(0), Le(2)] | None = None
    """Mirostat sampling: 0 off, 1 or 2 its version."""
    mirostat_tau: float | None = None
    """Mirostat's target entropy."""
    mirostat_eta: float | None = None
    """Mirostat's learning rate."""
    samplers: Samplers | None = None
    """The order in which samplers are applied: their names, or their letters in one string."""
    min_keep: Annotated[int, Ge(0)] | None = None
    """Samplers leave at least so many tokens."""
    n_keep: Annotated[int, Ge(-1)] | None = None
    """Tokens of the prompt to keep when the context is shifted; -1 keeps all."""
    n_probs: Annotated[int, Ge(0), Le(PROBABILITIES)] | None = None
    """List the N most probable tokens for each generated one."""
    ignore_eos: bool | None = None
    """Go on after the end of the text, up to `max_tokens`."""
    grammar: Annotated[str, MaxLen(GRAMMAR_CHARS)] | None = None
    """A GBNF grammar that the text must follow."""
    json_schema: JsonObject | None = None
    """A JSON schema that the text must follow."""
    timings_per_token: bool | None = None
    """Add timings to every chunk."""
    return_progress: bool | None = None
    """Send chunks that tell how far the prompt has been read."""
    return_tokens: bool | None = None
    """Return the ids of the generated tokens too."""


class Generation(Everyday, LlamaSampling):
    """What chat completions and completions have in common."""

    n: Annotated[int, Ge(1), Le(CHOICES)] | None = None
    """How many choices to generate; the model needs as many free slots at once."""
    stream_options: StreamOptions | None = None
    """Only together with `stream: true`."""
    logit_bias: LogitBias | None = None
    """Make tokens more or less likely: an object from token id to bias, or an array of `[token, bias]` pairs."""
    stop: Stop | None = None
    """Stop before this text, or before any of these texts. Empty strings are left out."""
    metadata: Metadata | None = None
    """Notes of the client; without effect on the reply."""
    n_predict: TokenLimit | None = None
    """llama-server's name of `max_tokens`; refused unless the model's settings allow it."""
