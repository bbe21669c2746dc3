"""The keys in the store: made, changed, rotated, revoked and read."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from corral.core.api_key import PREFIX_CHARS, StoredKey, digest_of, new_id, new_secret
from corral.core.errors import InvalidRequest, KeyNotFound
from corral.core.principal import Priority
from corral.store.database import reading, writing
from corral.store.tables import api_key, keyring
from corral.store.terms import KeyChange, KeyTerms, priority_name, terms_of

log = logging.getLogger("corral.store")

# What reading a row fails with that this version has not written.
STRANGE = (ValueError, TypeError, KeyError)


@dataclass(frozen=True, slots=True)
class KeyStore:
    """Reads and writes keys. Each change raises the version of the keyring in the same transaction.

    The row of the version is locked by whoever changes keys, so that versions become visible in their order.
    """

    engine: AsyncEngine
    # Seconds since 1970.
    clock: Callable[[], float]

    async def create(self, terms: KeyTerms) -> tuple[StoredKey, str]:
        """A new key, and its secret, which nobody can see again."""
        secret = new_secret()
        digest = digest_of(secret)
        key = _on(terms, StoredKey(new_id(), digest, secret[:PREFIX_CHARS], terms.client, created=self.clock()))
        async with writing(self.engine) as connection:
            version = await _next_version(connection)
            await connection.execute(api_key.insert(), {**_row(key), "version": version})
        return key, secret

    async def change(self, key_id: str, change: KeyChange) -> StoredKey:
        """The key on other terms; a revoked one stays revoked. Raises KeyNotFound."""
        return await self._update(key_id, lambda key: _on(change.applied_to(terms_of(key)), key))

    async def rotate(self, key_id: str, overlap_s: float = 0.0) -> tuple[StoredKey, str]:
        """The same key with another secret; the one before counts for ``overlap_s`` longer. Raises KeyNotFound."""
        secret = new_secret()
        until = self.clock() + overlap_s

        def rotated(key: StoredKey) -> StoredKey:
            old = (key.digest, until) if overlap_s > 0 else (None, None)
            fresh = replace(key, digest=digest_of(secret), prefix=secret[:PREFIX_CHARS])
            return replace(fresh, old_digest=old[0], old_until=old[1])

        return await self._update(key_id, rotated), secret

    async def revoke(self, key_id: str) -> StoredKey:
        """The key opens nothing any more, now and for ever; more than once is once. Raises KeyNotFound."""
        since = sa.func.coalesce(api_key.c.revoked, self.clock())
        async with writing(self.engine) as connection:
            version = await _next_version(connection)
            row = await _row_of(connection, key_id)
            change = api_key.update().where(api_key.c.id == key_id).values(revoked=since, version=version)
            revoked = (await connection.execute(change.returning(api_key.c.revoked))).scalar_one()
        # Also one that is not understood.
        return replace(_known(row), revoked=revoked)

    async def get(self, key_id: str) -> StoredKey:
        """The key of this id. Raises KeyNotFound."""
        async with reading(self.engine) as connection:
            return _known(await _row_of(connection, key_id))

    async def all(self, *, after: int = 0) -> list[StoredKey]:
        """All keys that were made or changed after a version, the oldest first."""
        query = api_key.select().where(api_key.c.version > after).order_by(api_key.c.created, api_key.c.id)
        async with reading(self.engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [_known(row) for row in rows]

    async def version(self) -> int:
        """How often keys were changed: what ``all`` tells of was there at this version, or is newer."""
        async with reading(self.engine) as connection:
            return int((await connection.execute(sa.select(keyring.c.version))).scalar_one())

    async def _update(self, key_id: str, change: Callable[[StoredKey], StoredKey]) -> StoredKey:
        async with writing(self.engine) as connection:
            version = await _next_version(connection)
            key = change(_understood(await _row_of(connection, key_id)))
            row = {**_row(key), "version": version}
            await connection.execute(api_key.update().where(api_key.c.id == key_id), row)
        return key


async def _next_version(connection: AsyncConnection) -> int:
    query = keyring.update().values(version=keyring.c.version + 1).returning(keyring.c.version)
    return int((await connection.execute(query)).scalar_one())


async def _row_of(connection: AsyncConnection, key_id: str) -> Any:  # noqa: ANN401  (SQLAlchemy's mapping)
    row = (await connection.execute(api_key.select().where(api_key.c.id == key_id))).mappings().one_or_none()
    if row is None:
        raise KeyNotFound("there is no key of this id; 'corral keys list' shows all", param="id")
    return row


def _on(terms: KeyTerms, key: StoredKey) -> StoredKey:
    return replace(
        key,
        client=terms.client,
        name=terms.name,
        scopes=terms.granted(),
        models=terms.models,
        quota=terms.limits.quota(),
        model_quotas=tuple((pattern, limits.quota()) for pattern, limits in terms.model_limits.items()),
        priority=terms.ranked(),
        weight=terms.weight,
        expires=terms.expires,
    )


def _row(key: StoredKey) -> dict[str, Any]:
    """All but when it was last used, which who counts usage writes."""
    grants = terms_of(key).model_dump(include={"scopes", "models", "limits", "model_limits"}, exclude_none=True)
    return {
        "id": key.id,
        "digest": key.digest,
        "prefix": key.prefix,
        "client": key.client,
        "name": key.name,
        "grants": json.dumps(grants),
        "priority": priority_name(key.priority),
        "weight": key.weight,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "old_digest": key.old_digest,
        "old_until": key.old_until,
    }


def _known(row: Any) -> StoredKey:  # noqa: ANN401  (SQLAlchemy's mapping)
    """What only a newer version can have written opens nothing here, as if it were revoked; the log says so."""
    try:
        return _key(row)
    except STRANGE:
        log.exception("a key in the store is not understood", extra={"fields": {"key_id": row["id"]}})
        key = StoredKey(row["id"], row["digest"], row["prefix"], row["client"], row["name"], created=row["created"])
        return replace(key, revoked=row["created"])


def _understood(row: Any) -> StoredKey:  # noqa: ANN401  (SQLAlchemy's mapping)
    try:
        return _key(row)
    except STRANGE as error:
        raise InvalidRequest("the key is of a newer Corral; change it with that", param="id") from error


def _key(row: Any) -> StoredKey:  # noqa: ANN401  (SQLAlchemy's mapping)
    terms = KeyTerms.model_validate({"client": row["client"], **json.loads(row["grants"])})
    key = StoredKey(
        row["id"],
        bytes(row["digest"]),
        row["prefix"],
        row["client"],
        created=row["created"],
        last_used=row["last_used"],
        revoked=row["revoked"],
        old_digest=None if row["old_digest"] is None else bytes(row["old_digest"]),
        old_until=row["old_until"],
    )
    priority = None if row["priority"] is None else Priority[row["priority"].upper()]
    return replace(_on(terms, key), name=row["name"], priority=priority, weight=row["weight"], expires=row["expires"])
