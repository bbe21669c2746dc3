"""The operator's API for keys. Served only where there is a store."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from corral.core.api_key import KeyStanding, StoredKey
from corral.openai.replies import ErrorReply
from corral.store.key_shapes import AdminKey, AdminKeys, AdminNewKey, Rotation
from corral.store.terms import KeyChange, KeyTerms
from corral.web.admin import CLOSED
from corral.web.roles import principal_of

if TYPE_CHECKING:
    # What it needs takes memory, which a Corral without a store can do without.
    from corral.store.keys import KeyStore

log = logging.getLogger("corral.store")

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The terms are not right; `param` names which."},
    404: {"model": ErrorReply, "description": "There is no such key."},
    503: {"model": ErrorReply, "description": "The store does not answer."},
}

KeyId = Annotated[str, Path(description="What the key goes by: `key_…`.", max_length=64)]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the store, for operators."""

    store: "KeyStore"
    # Makes this process go by a change at once; the others find out by themselves.
    refresh: Callable[[], Awaitable[None]]
    # Seconds since 1970.
    clock: Callable[[], float]


def keys_router(keys: Keys) -> APIRouter:
    """The routes below /admin/keys."""
    router = APIRouter(prefix="/admin/keys", tags=["keys"], responses=CLOSED)
    store, clock = keys.store, keys.clock

    async def done(what: str, key: StoredKey, request: Request) -> None:
        log.info(what, extra={"fields": {"key_id": key.id, "client": key.client, "by": principal_of(request).client}})
        await keys.refresh()

    @router.get("", summary="All keys", responses={503: REFUSALS[503]})
    async def list_keys(
        revoked: Annotated[bool, Query(description="Those too that were revoked.")] = False,
    ) -> AdminKeys:
        shown = [AdminKey.of(key, clock()) for key in await store.all()]
        return AdminKeys(keys=[key for key in shown if revoked or key.standing is not KeyStanding.REVOKED])

    @router.post("", summary="Make a key", status_code=201, responses={400: REFUSALS[400], 503: REFUSALS[503]})
    async def create_key(terms: KeyTerms, request: Request) -> AdminNewKey:
        key, secret = await store.create(terms)
        await done("key created", key, request)
        return AdminNewKey.with_secret(key, clock(), secret)

    @router.get("/{key_id}", summary="One key", responses={404: REFUSALS[404], 503: REFUSALS[503]})
    async def get_key(key_id: KeyId) -> AdminKey:
        return AdminKey.of(await store.get(key_id), clock())

    @router.patch("/{key_id}", summary="Change a key", responses=REFUSALS)
    async def change_key(key_id: KeyId, change: KeyChange, request: Request) -> AdminKey:
        key = await store.change(key_id, change)
        await done("key changed", key, request)
        return AdminKey.of(key, clock())

    @router.post("/{key_id}/rotate", summary="Give a key another secret", responses=REFUSALS)
    async def rotate_key(key_id: KeyId, request: Request, rotation: Rotation | None = None) -> AdminNewKey:
        key, secret = await store.rotate(key_id, (rotation or Rotation()).overlap_s)
        await done("key rotated", key, request)
        return AdminNewKey.with_secret(key, clock(), secret)

    @router.post("/{key_id}/revoke", summary="Let a key open nothing any more", responses=REFUSALS)
    async def revoke_key(key_id: KeyId, request: Request) -> AdminKey:
        key = await store.revoke(key_id)
        await done("key revoked", key, request)
        return AdminKey.of(key, clock())

    return router
