"""What an operator says of a key: the same words in commands, in the operator's API and in the store."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from corral.core.api_key import StoredKey
from corral.core.principal import Priority, Quota, Scope

Weight = Annotated[float, Field(ge=0.01, le=1000)]
UnixTime = Annotated[float, Field(ge=0, le=1e11)]
Limit = Annotated[int, Field(ge=0, le=2**53)]
Pattern = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/@+*?\[\]!-]+$")]
ClientName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
# What stands in lists and on terminals: no control characters.
KeyName = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
ScopeName = Literal["inference", "admin", "metrics"]
Scopes = Annotated[tuple[ScopeName, ...], Field(min_length=1)]
PriorityName = Literal["interactive", "default", "batch"]


class Terms(BaseModel):
    """Words of an operator."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


class QuotaTerms(Terms):
    """How much may be asked for; what is not said is as the settings have it, and 0 is no limit."""

    requests: Limit | None = None
    """Requests in a window."""
    tokens: Limit | None = None
    """Tokens, of prompts and replies together, in a window."""
    in_flight: Limit | None = None
    """Requests under way."""
    tokens_day: Limit | None = None
    """Tokens in a day of UTC."""
    tokens_month: Limit | None = None
    """Tokens in a month of UTC."""
    max_tokens: Limit | None = None
    """The largest `max_tokens` of a request."""
    max_context: Limit | None = None
    """The most tokens of a prompt and its reply together."""

    def quota(self) -> Quota:
        """The same as a value."""
        return Quota(**self.model_dump())

    @classmethod
    def of(cls, quota: Quota) -> Self:
        """The value in words."""
        return cls(**{name: getattr(quota, name) for name in cls.model_fields})


class KeyTerms(Terms):
    """What a key opens, for whom and how much."""

    client: ClientName
    """Whose it is: the name in metrics, logs and usage."""
    name: KeyName = ""
    """What it is for."""
    scopes: Scopes = ("inference",)
    """What it opens: inference, admin, metrics."""
    models: tuple[Pattern, ...] = ()
    """Patterns of the models it may ask for, such as `llama-*`; none: all."""
    limits: QuotaTerms = QuotaTerms()
    """Its limits, for all models together."""
    model_limits: dict[Pattern, QuotaTerms] = {}
    """Limits beside these, of each model that a pattern names."""
    priority: PriorityName | None = None
    """Its class in the queue; not said: as the settings have it for the client."""
    weight: Weight | None = None
    """Its share beside others of its class; not said: as the settings have it for the client."""
    expires: UnixTime | None = None
    """When it ends, in seconds since 1970; not said: never."""

    def granted(self) -> frozenset[Scope]:
        """Its scopes as values."""
        return frozenset(map(Scope, self.scopes))

    def ranked(self) -> Priority | None:
        """Its class as a value."""
        return None if self.priority is None else Priority[self.priority.upper()]


class KeyChange(Terms):
    """What is to be different of a key: what is not said stays, and null is as if it had never been said."""

    client: ClientName = ""
    name: KeyName | None = None
    scopes: Scopes | None = None
    models: tuple[Pattern, ...] | None = None
    limits: QuotaTerms | None = None
    """Those that are named change, the others stay."""
    model_limits: dict[Pattern, QuotaTerms | None] | None = None
    """Those that are named of the patterns that are named change, the others stay; null takes a pattern away."""
    priority: PriorityName | None = None
    weight: Weight | None = None
    expires: UnixTime | None = None

    def applied_to(self, terms: KeyTerms) -> KeyTerms:
        """The terms that it leads to."""
        said = self.model_dump(exclude_unset=True)
        told = {**terms.model_dump(), **{name: value for name, value in said.items() if value is not None}}
        if self.limits is not None:
            told["limits"] = terms.limits.model_dump() | said["limits"]
        if self.model_limits is not None:
            told["model_limits"] = _merged(terms.model_dump()["model_limits"], said["model_limits"])
        for name in (name for name, value in said.items() if value is None):
            del told[name]
        return KeyTerms.model_validate(told)


def terms_of(key: StoredKey) -> KeyTerms:
    """The terms on which a key is given."""
    return KeyTerms(
        client=key.client,
        name=key.name,
        scopes=_names(key.scopes),
        models=key.models,
        limits=QuotaTerms.of(key.quota),
        model_limits={pattern: QuotaTerms.of(quota) for pattern, quota in key.model_quotas},
        priority=priority_name(key.priority),
        weight=key.weight,
        expires=key.expires,
    )


def priority_name(priority: Priority | None) -> Any:  # noqa: ANN401  (a literal)
    """The class as operators call it."""
    return None if priority is None else priority.label


def _merged(quotas: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    changed = {pattern: quotas.get(pattern, {}) | quota for pattern, quota in said.items() if quota is not None}
    return {pattern: quota for pattern, quota in (quotas | changed).items() if said.get(pattern, quota) is not None}


def _names(scopes: frozenset[Scope]) -> Any:  # noqa: ANN401  (literals)
    return tuple(scope.value for scope in Scope if scope in scopes)
