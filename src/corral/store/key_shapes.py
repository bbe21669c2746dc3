"""What operators are told of keys, by their API and by commands."""

from typing import Annotated, Self

from pydantic import Field

from corral.core.api_key import KeyStanding, StoredKey
from corral.store.terms import KeyTerms, Terms, terms_of


class AdminKey(KeyTerms):
    """A key; its secret is told once, when it is made or rotated."""

    id: str
    """What it goes by, also when it is rotated."""
    prefix: str
    """What its secret begins with."""
    standing: KeyStanding
    """Whether it opens anything."""
    created: float
    last_used: float | None
    revoked: float | None
    old_until: float | None
    """Until when the secret before the last rotation counts."""

    @classmethod
    def of(cls, key: StoredKey, now: float) -> Self:
        return cls.model_validate(terms_of(key).model_dump() | _told(key, now))


class AdminNewKey(AdminKey):
    """A key with its secret."""

    secret: str
    """The key itself; nobody can see it again."""

    @classmethod
    def with_secret(cls, key: StoredKey, now: float, secret: str) -> Self:
        return cls.model_validate(terms_of(key).model_dump() | _told(key, now) | {"secret": secret})


class AdminKeys(Terms):
    """All keys."""

    keys: list[AdminKey]


class Rotation(Terms):
    """How a key is rotated."""

    overlap_s: Annotated[float, Field(ge=0, le=90 * 86400)] = 0.0
    """For how many seconds the old secret counts beside the new one."""


def _told(key: StoredKey, now: float) -> dict[str, object]:
    names = ("id", "prefix", "created", "last_used", "revoked", "old_until")
    return {**{name: getattr(key, name) for name in names}, "standing": key.standing(now)}
