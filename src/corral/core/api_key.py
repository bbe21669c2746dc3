"""API keys as the store keeps them: known by their hash, with what they open."""

import hashlib
import secrets
from dataclasses import dataclass, field
from enum import Enum

from corral.core.principal import INFERENCE, UNSAID, Priority, Quota, Scope

# What every key begins with, so that people and scanners of secrets know what it is.
MARK = "sk-corral-"
# 256 bits: no hash of a key needs to be made slow.
SECRET_BYTES = 32
# So much of a key is kept, for people to tell it by.
PREFIX_CHARS = len(MARK) + 4


class KeyStanding(Enum):
    """Whether a key opens anything."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key of the store. All times are seconds since 1970.

    ``old_digest`` is what it was before it was rotated, which counts until ``old_until``. ``priority`` and ``weight``
    are None where the settings of the queue decide by the client.
    """

    id: str
    digest: bytes = field(repr=False)
    prefix: str
    client: str
    name: str = ""
    scopes: frozenset[Scope] = INFERENCE
    models: tuple[str, ...] = ()
    quota: Quota = UNSAID
    model_quotas: tuple[tuple[str, Quota], ...] = ()
    priority: Priority | None = None
    weight: float | None = None
    created: float = 0.0
    expires: float | None = None
    last_used: float | None = None
    revoked: float | None = None
    old_digest: bytes | None = field(default=None, repr=False)
    old_until: float | None = None

    def standing(self, now: float) -> KeyStanding:
        """What it is worth at a time."""
        if self.revoked is not None:
            return KeyStanding.REVOKED
        return KeyStanding.EXPIRED if self.expires is not None and now >= self.expires else KeyStanding.VALID


def new_secret() -> str:
    """A key that nobody can guess."""
    return MARK + secrets.token_urlsafe(SECRET_BYTES)


def new_id() -> str:
    """A name for a key that says nothing of it."""
    return "key_" + secrets.token_hex(8)


def digest_of(secret: str) -> bytes:
    """The form in which a key is kept and looked up."""
    return hashlib.sha256(secret.encode()).digest()
