"""What an operator lets clients send, and which fields reach llama-server."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from corral.core.errors import InvalidRequest
from corral.openai.complaints import UNSUPPORTED, shown


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is put into the fields of a request, and left out of them, before they go to llama-server."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    strip: frozenset[str] = frozenset()

    def applied_to(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Stripped first, so that a default can stand in place of what was left out."""
        kept = {key: value for key, value in fields.items() if key not in self.strip}
        return {**self.defaults, **kept, **self.overrides}


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's settings for the requests of one model."""

    default_max_tokens: int
    # Refused fields that this model's clients may send, by name or by pattern
    # as in ``REFUSED``, ``speculative.*`` and ``reasoning_budget_*_tag``.
    allow_fields: frozenset[str] = frozenset()
    # llama-server fetches web addresses itself, from inside the operator's network.
    remote_images: bool = False
    # Prompts or embedding inputs in one request.
    max_inputs: int = 2048
    # Nesting of the JSON body. orjson writes at most 254 levels.
    max_depth: int = 64
    # None: the fields go as they came.
    parameters: Parameters | None = None


# llama-server copies every key it does not know into its internal parameters
# (server-common.cpp), so that a client could choose the slot it evicts another
# from, see the whole prompt, or replace the parser of the reply.
REFUSED = frozenset(
    {
        "__verbose",
        "chat_format",
        "chat_parser",
        "generation_prompt",
        "grammar_triggers",
        "id_slot",
        "lora",
        "message_delimiters",
        "n_cache_reuse",
        "n_predict",
        "preserved_tokens",
        "response_fields",
        "verbose",
    }
)
SPECULATIVE = "speculative.*"
BUDGET_TAGS = "reasoning_budget_*_tag"
# What the patterns begin with.
REFUSED_PREFIXES = ("speculative", "reasoning_budget_")

# Corral's own: it decides how llama-server is asked, and counts the tokens.
OWNED = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "model",
        "n_predict",
        "return_progress",
        "sse_ping_interval",
        "stream",
        "stream_options",
    }
)


def fields_of(body: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """The fields to send upstream: what the client sent, without nulls (the default) and without Corral's own.

    Raises ``InvalidRequest`` for a refused field.
    """
    for key, value in body.items():
        if key in REFUSED or key.startswith(REFUSED_PREFIXES):
            _refuse(key, value, policy)
    fields = own_fields_out(body)
    return fields if policy.parameters is None else policy.parameters.applied_to(fields)


def own_fields_out(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without nulls and without Corral's own."""
    return {key: value for key, value in body.items() if value is not None and key not in OWNED}


def refuse_unsupported(body: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Refuse what llama-server would ignore in silence, where that would change the reply."""
    for key in reasons.keys() & body.keys():
        reason = reasons[key]
        if body.get(key) is not None:
            raise InvalidRequest(f"'{key}' is not supported: {reason}", param=key, code=UNSUPPORTED)


def token_limit(limits: Iterable[int | None]) -> int | None:
    """The first limit given; -1 is how users of llama-server write "none"."""
    return next((limit for limit in limits if limit is not None and limit >= 0), None)


def _refuse(key: str, value: object, policy: Policy) -> None:
    pattern = _refusal(key)
    if value is not None and pattern is not None and policy.allow_fields.isdisjoint((key, pattern)):
        raise _refused(key)


def _refusal(key: str) -> str | None:
    """What refuses the field: its own name, or a pattern."""
    if key in REFUSED:
        return key
    if key == "speculative" or key.startswith("speculative."):
        return SPECULATIVE
    # Also "…_end_tags", which newer llama-servers know.
    if key.startswith("reasoning_budget_") and key.removesuffix("s").endswith("_tag"):
        return BUDGET_TAGS
    return None


def _refused(key: str) -> InvalidRequest:
    name = shown(key)
    instead = "use 'max_tokens'" if key == "n_predict" else "leave it out"
    return InvalidRequest(
        f"'{name}' is internal to the model server and not allowed for this model; {instead}",
        param=name,
        code=UNSUPPORTED,
    )
