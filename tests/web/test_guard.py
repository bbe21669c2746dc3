"""One guard stands in front of every route, and opens none that nobody has spoken for."""

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request

from corral.config import ApiKey, QueueSettings, key_digest
from corral.core.errors import Forbidden, StoreUnavailable
from corral.pipeline.authenticate import Keyring, StoredKeys
from corral.web.roles import ROLES, guard, is_operator
from support.run import async_test

KEYS = (ApiKey(digest=key_digest("key-of-operator"), client="operator", operator=True),)
KEYRING = Keyring(KEYS, QueueSettings(), allow_anonymous=True, clock=lambda: 0.0)


async def get(path: str, *, key: str | None) -> httpx.Response:
    """What an application with one route that the table names, and one that it does not, answers."""
    router = APIRouter()
    for served in ("/health/live", "/new"):
        router.add_api_route(served, lambda: "reached")
    app = FastAPI()
    app.include_router(router, dependencies=[Depends(guard(KEYRING, loopback=True))])
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://corral") as client:
        return await client.get(path, headers=headers)


@async_test
async def test_a_declared_route_is_reached() -> None:
    assert (await get("/health/live", key=None)).json() == "reached"


@pytest.mark.parametrize("key", [None])
@async_test
async def test_a_route_without_a_role_stays_shut(key: str | None) -> None:
    assert ("GET", "/new") not in ROLES
    with pytest.raises(Forbidden):
        await get("/new", key=key)


def test_who_cannot_be_known_yet_is_told_what_everybody_is() -> None:
    """The keys of the store have not been read: that is no reason to say that Corral is not well."""
    keyring = Keyring((), QueueSettings(), allow_anonymous=False, clock=lambda: 0.0, stored=StoredKeys())
    request = Request({"type": "http", "headers": [(b"authorization", b"Bearer one-of-the-store")]})
    with pytest.raises(StoreUnavailable):
        keyring.authenticate(request.scope["headers"])
    assert not is_operator(request, keyring)
