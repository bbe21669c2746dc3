"""Every route and every kind of key: who gets in."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from corral.config import StoreSettings
from corral.core.principal import Scope
from corral.store.keys import KeyStore
from corral.store.opened import Store
from corral.store.terms import KeyChange, KeyTerms
from corral.web.roles import ROLES, Role
from support.door import Door
from support.fake import FakeLlama
from support.gateway import Gateway
from support.talk import credentials, send_raw

# What each kind of key gets where it comes in; 0 stands for "let in", whatever the route then says of an empty request.
LET_IN = 0
EVERYBODY = dict.fromkeys(
    ("none", "wrong", "expired", "revoked", "rotated", "inference", "metrics", "admin", "operator"), LET_IN
)
STRANGERS = dict.fromkeys(("none", "wrong", "expired", "revoked", "rotated"), 401)
EXPECTED: dict[Role, dict[str, int]] = {
    Role.ANYBODY: EVERYBODY,
    Role.INFERENCE: {**STRANGERS, "inference": LET_IN, "metrics": 403, "admin": 403, "operator": LET_IN},
    Role.CLIENT: {**STRANGERS, "inference": LET_IN, "metrics": 403, "admin": LET_IN, "operator": LET_IN},
    Role.METRICS: {**STRANGERS, "inference": 403, "metrics": LET_IN, "admin": LET_IN, "operator": LET_IN},
    Role.ADMIN: {**STRANGERS, "inference": 403, "metrics": 403, "admin": LET_IN, "operator": LET_IN},
}
REFUSALS = (401, 403)
# Pages that FastAPI serves by itself: what the API is like is no secret.
PAGES = ("/docs", "/openapi.json", "/redoc")


@dataclass(frozen=True)
class Guarded:
    """A gateway with a store, and a key of each kind."""

    gateway: Gateway
    keys: dict[str, str | None]


async def make_keys(file: Path) -> dict[str, str | None]:
    """A key of each kind in a new store."""
    store = Store(StoreSettings(file=file))
    await store.prepare()
    keys = KeyStore(store.engine, time.time)
    made: dict[str, str | None] = {}
    for scope in Scope:
        _, made[scope.value] = await keys.create(KeyTerms(client=scope.value, scopes=(scope.value,)))
    everything = KeyTerms(client="gone", scopes=("inference", "admin", "metrics"))
    expired, made["expired"] = await keys.create(everything)
    await keys.change(expired.id, KeyChange(expires=time.time() - 1))
    revoked, made["revoked"] = await keys.create(everything)
    await keys.revoke(revoked.id)
    rotated, made["rotated"] = await keys.create(everything)
    await keys.rotate(rotated.id)
    await store.close()
    return made


@pytest.fixture(scope="module", params=Door, ids=lambda door: door.value)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("roles")
    keys = asyncio.run(make_keys(directory / "keys.db"))
    keys |= {"none": None, "wrong": "sk-corral-" + "x" * 43, "operator": "key-of-operator"}
    with FakeLlama() as fake:
        gateway = Gateway(
            directory,
            door=request.param,
            MODEL_UPSTREAMS=f"one={fake.url}",
            OPERATOR_API_KEY="key-of-operator",
            CORRAL_STORE_FILE=str(directory / "keys.db"),
        )
        with gateway:
            gateway.until_ready()
            yield Guarded(gateway, keys)


def routes(gateway: Gateway) -> set[tuple[str, str]]:
    """Each method and path that the running Corral says it has."""
    paths = gateway.get("/openapi.json").json()["paths"]
    return {(method.upper(), path.replace(":path}", "}")) for path, methods in paths.items() for method in methods}


def test_every_route_has_a_declared_role_and_every_declared_route_exists(guarded: Guarded) -> None:
    assert routes(guarded.gateway) == set(ROLES)


def test_every_kind_of_key_is_expected_somewhere(guarded: Guarded) -> None:
    for role in Role:
        assert set(EXPECTED[role]) == set(guarded.keys)


@pytest.mark.parametrize(("method", "path"), ROLES, ids=[" ".join(route) for route in ROLES])
def test_rows_3_and_4_each_kind_of_key_gets_what_the_role_says(
    guarded: Guarded, method: str, path: str, role_cell: Callable[[str, str, str], None]
) -> None:
    role = ROLES[method, path]
    for kind, key in guarded.keys.items():
        expected = EXPECTED[role][kind]
        status = ask(guarded.gateway, method, path, key)
        assert (status if status in REFUSALS else LET_IN) == expected, (kind, status)
        role_cell(f"{method} {path}", kind, "in" if expected == LET_IN else str(expected))


def ask(gateway: Gateway, method: str, path: str, key: str | None) -> int:
    """The status of an empty request from afar for a model and a key that there are not."""
    line = f"{method} {path.replace('{model}', 'nobody').replace('{key_id}', 'nobody')} HTTP/1.1"
    headers = ["Host: x", "Connection: close", "X-Forwarded-For: 10.0.0.1", "Content-Type: application/json"]
    headers += [f"{name}: {value}" for name, value in credentials(key).items()]
    return send_raw(gateway, line, *headers, "Content-Length: 2", body=b"{}").status


@pytest.mark.parametrize("path", PAGES)
def test_the_pages_of_the_documentation_show_no_more_than_the_api(guarded: Guarded, path: str) -> None:
    page = guarded.gateway.get(path)
    assert page.status_code == 200
    assert not [key for key in guarded.keys.values() if key and key in page.text]
