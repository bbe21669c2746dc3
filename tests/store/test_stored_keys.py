"""Keys in a store: made, changed, rotated, revoked and read, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr, ValidationError

from corral.config import StoreSettings
from corral.core.api_key import MARK, KeyStanding, StoredKey, digest_of
from corral.core.errors import InvalidRequest, KeyNotFound
from corral.core.principal import Priority, Quota, Scope
from corral.store.database import database_url, reading, writing
from corral.store.keys import KeyStore
from corral.store.opened import Store
from corral.store.tables import api_key
from corral.store.terms import KeyChange, KeyTerms, QuotaTerms
from support.run import async_test

NOW = 1_800_000_000.25
TERMS = KeyTerms(
    client="team_a",
    name="chat [b]app[/b] 'x'; --",
    scopes=("inference", "metrics"),
    models=("llama-*", "qwen"),
    limits=QuotaTerms(requests=5, tokens_day=0),
    model_limits={"llama-*": QuotaTerms(in_flight=2)},
    priority="batch",
    weight=2.5,
    expires=NOW + 60,
)


@asynccontextmanager
async def opened(settings: StoreSettings) -> AsyncIterator[KeyStore]:
    store = Store(settings)
    await store.prepare()
    try:
        yield KeyStore(store.engine, lambda: NOW)
    finally:
        await store.close()


@async_test
async def test_what_is_said_of_a_key_is_what_is_read(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        key, secret = await keys.create(TERMS)
        assert secret.startswith(MARK)
        assert len(secret) == len(MARK) + 43
        assert key == StoredKey(
            id=key.id,
            digest=digest_of(secret),
            prefix=secret[: len(MARK) + 4],
            client="team_a",
            name="chat [b]app[/b] 'x'; --",
            scopes=frozenset({Scope.INFERENCE, Scope.METRICS}),
            models=("llama-*", "qwen"),
            quota=Quota(requests=5, tokens_day=0),
            model_quotas=(("llama-*", Quota(in_flight=2)),),
            priority=Priority.BATCH,
            weight=2.5,
            created=NOW,
            expires=NOW + 60,
        )
        assert await keys.get(key.id) == key
        assert await keys.all() == [key]


@async_test
async def test_a_key_that_says_little_leaves_the_rest_to_the_settings(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        key, _ = await keys.create(KeyTerms(client="a"))
        assert (key.scopes, key.models, key.quota) == (frozenset({Scope.INFERENCE}), (), Quota())
        assert (key.priority, key.weight, key.expires) == (None, None, None)
        assert await keys.get(key.id) == key


@async_test
async def test_a_change_leaves_what_it_does_not_name(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        key, _ = await keys.create(TERMS)
        limits = QuotaTerms(requests=None, tokens=9)
        changed = await keys.change(key.id, KeyChange(limits=limits, priority=None, weight=None, models=()))
        assert changed.quota == Quota(tokens=9, tokens_day=0)
        assert (changed.priority, changed.weight, changed.models) == (None, None, ())
        assert (changed.digest, changed.name, changed.expires) == (key.digest, key.name, key.expires)
        assert changed.model_quotas == key.model_quotas
        again = await keys.change(
            key.id, KeyChange(model_limits={"llama-*": None, "x": QuotaTerms(tokens=1)}, expires=None)
        )
        assert (again.model_quotas, again.expires) == ((("x", Quota(tokens=1)),), None)
        assert await keys.get(key.id) == again


@pytest.mark.parametrize(
    ("said", "requests", "of_model"),
    [
        ({"limits": {}}, 5, {"requests": 3, "tokens": 9}),
        ({"model_limits": {}}, 5, {"requests": 3, "tokens": 9}),
        ({"model_limits": {"llama-*": {}}}, 5, {"requests": 3, "tokens": 9}),
        ({"model_limits": {"llama-*": {"tokens": 7}}}, 5, {"requests": 3, "tokens": 7}),
        ({"model_limits": {"llama-*": {"tokens": None}}}, 5, {"requests": 3}),
        ({"model_limits": {"llama-*": None, "other": None}}, 5, None),
        ({"limits": None}, None, {"requests": 3, "tokens": 9}),
        ({"model_limits": None}, 5, None),
    ],
)
def test_a_limit_that_is_not_named_stays(
    said: dict[str, Any], requests: int | None, of_model: dict[str, int] | None
) -> None:
    limits = {"llama-*": QuotaTerms(requests=3, tokens=9)}
    terms = KeyTerms(client="a", limits=QuotaTerms(requests=5), model_limits=limits)
    changed = KeyChange.model_validate(said).applied_to(terms)
    expected = {} if of_model is None else {"llama-*": QuotaTerms(**of_model)}
    assert (changed.limits.requests, changed.model_limits) == (requests, expected)


@async_test
async def test_a_rotated_key_is_the_same_with_another_secret(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        key, old = await keys.create(TERMS)
        rotated, secret = await keys.rotate(key.id, 30)
        assert secret != old
        assert (rotated.digest, rotated.old_digest, rotated.old_until) == (digest_of(secret), digest_of(old), NOW + 30)
        assert (rotated.id, rotated.quota) == (key.id, key.quota)
        at_once, _ = await keys.rotate(key.id)
        assert (at_once.old_digest, at_once.old_until) == (None, None)
        assert await keys.get(key.id) == at_once


@async_test
async def test_a_revoked_key_stays_revoked(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        key, _ = await keys.create(TERMS)
        assert (await keys.revoke(key.id)).standing(0) is KeyStanding.REVOKED
        assert (await keys.change(key.id, KeyChange(name="x"))).standing(0) is KeyStanding.REVOKED
        assert (await keys.rotate(key.id))[0].standing(0) is KeyStanding.REVOKED
        assert (await keys.revoke(key.id)).revoked == NOW


@async_test
async def test_every_change_is_a_version_later_and_only_it_is_read_again(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        one, _ = await keys.create(KeyTerms(client="one"))
        seen = await keys.version()
        assert await keys.all(after=seen) == []
        two, _ = await keys.create(KeyTerms(client="two"))
        assert await keys.all(after=seen) == [two]
        revoked = await keys.revoke(one.id)
        assert await keys.all(after=seen + 1) == [revoked]
        assert await keys.version() == seen + 2


@async_test
async def test_changes_at_once_are_all_made_each_with_a_version_of_its_own(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as one, opened(store_settings) as other:
        before = await one.version()
        names = [f"client-{number}" for number in range(20)]
        async with asyncio.TaskGroup() as tasks:
            for number, name in enumerate(names):
                tasks.create_task((one, other)[number % 2].create(KeyTerms(client=name)))
        assert sorted(key.client for key in await one.all()) == sorted(names)
        assert await one.version() == before + len(names)


@async_test
async def test_a_key_that_there_is_not_is_said_so_and_is_no_change(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        version = await keys.version()
        for asked in (keys.get("x"), keys.revoke("x"), keys.rotate("x"), keys.change("x", KeyChange())):
            with pytest.raises(KeyNotFound):
                await asked
        assert await keys.version() == version


@pytest.mark.parametrize("strange", [{"grants": '{"scopes": ["new"]}'}, {"grants": "[1]"}, {"priority": "new"}])
@async_test
async def test_a_key_that_is_not_understood_opens_nothing_and_keeps_no_other_from_being_read(
    store_settings: StoreSettings, strange: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(store_settings) as keys:
        one, _ = await keys.create(KeyTerms(client="one"))
        other, _ = await keys.create(KeyTerms(client="other"))
        async with writing(keys.engine) as connection:
            await connection.execute(api_key.update().where(api_key.c.id == one.id).values(strange))
        found = {key.id: key for key in await keys.all()}
        shut, read = found[one.id], found[other.id]
        assert (shut.id, shut.standing(0), read) == (one.id, KeyStanding.REVOKED, other)
        with pytest.raises(InvalidRequest, match="newer"):
            await keys.change(one.id, KeyChange(name="x"))
        # Also for those who understand it.
        assert (await keys.revoke(one.id)).revoked == NOW
        async with reading(keys.engine) as connection:
            revoked = await connection.execute(sa.select(api_key.c.revoked).where(api_key.c.id == one.id))
            assert revoked.scalar_one() == NOW
    assert one.id in str([record.__dict__.get("fields") for record in caplog.records])


@pytest.mark.parametrize("name", ["'; DROP TABLE api_key; --", '"', "\\", "%", "ü", "$1"])
@async_test
async def test_row_1_what_a_name_holds_is_only_text(store_settings: StoreSettings, name: str) -> None:
    async with opened(store_settings) as keys:
        key, _ = await keys.create(KeyTerms(client="a", name=name))
        assert (await keys.get(key.id)).name == name
        with pytest.raises(KeyNotFound):
            await keys.get(name)


@pytest.mark.parametrize(
    "terms",
    [
        {"client": ""},
        {"client": "a b"},
        {"client": "a" * 65},
        {"scopes": ()},
        {"scopes": ("root",)},
        {"name": "a\nb"},
        {"name": "\x1b[31m"},
        {"models": ("",)},
        {"models": ("a b",)},
        {"limits": {"requests": -1}},
        {"limits": {"wishes": 3}},
        {"weight": 0},
        {"expires": -1},
        {"digest": "x"},
        {"id": "key_1"},
    ],
)
def test_terms_that_mean_nothing_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KeyTerms.model_validate({"client": "a", **terms})


@async_test
async def test_row_6_a_store_holds_no_key_and_repr_shows_no_hash(store_settings: StoreSettings) -> None:
    async with opened(store_settings) as keys:
        key, secret = await keys.create(TERMS)
        assert digest_of(secret).hex() not in repr(key)
        assert str(digest_of(secret)) not in repr(key)
    if store_settings.url is None:
        files = [file.read_bytes() for file in store_settings.file.parent.iterdir()]
        assert any(digest_of(secret) in content for content in files)
        assert not any(secret.encode() in content for content in files)


def test_tls_to_postgresql_is_asked_for_by_its_own_name() -> None:
    url = database_url(StoreSettings(url=SecretStr("postgresql://u:p@host/db?sslmode=verify-full")))
    assert (url.host, url.database, dict(url.query)) == ("host", "db", {"ssl": "verify-full"})
