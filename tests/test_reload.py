"""Settings that change while Corral runs: only what has changed is touched, and wrong ones change nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corral.assembly import Assembly
from corral.config import Config, LimitSettings, RequestSettings, ServerSettings
from corral.core.call import Call, Endpoint
from corral.core.errors import ConfigError, ModelNotFound, RateLimited
from corral.core.lifecycle import Phase
from corral.core.principal import Principal
from corral.core.record import Record
from corral.upstream.changes import Changed
from support.children import alive
from support.fake import FakeLlama
from support.fleets import Running, config_of
from support.run import async_test

A: dict[str, Any] = {"name": "a"}
B: dict[str, Any] = {"name": "b"}
C: dict[str, Any] = {"name": "c"}
SLOW = ("--load-s", "600")


class Reloading(Running):
    """A Corral whose settings a test changes."""

    config: Config

    async def reload(self, config: Config) -> Changed:
        self.config = config
        return (await self.assembly.reload()).models


@asynccontextmanager
async def reloading(config: Config) -> AsyncIterator[Reloading]:
    assembly = Assembly(config, lambda: corral.config)
    corral = Reloading(assembly)
    async with assembly.running():
        yield corral


@async_test
async def test_what_has_not_changed_keeps_its_process_and_what_has_gets_another(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A, B)) as corral:
        await corral.use("a")
        with await corral.lease("b") as lease:
            kept, old = corral.pid("a"), corral.pid("b")
            changed = await corral.reload(config_of(tmp_path, A, {**B, "parallel": 3}))
            assert changed == Changed(replaced=("b",))
            await corral.loader.until(lambda: bool(corral.model("b").outgoing))
            assert (await corral.lease("b")).replica.slots == 3
            # Who began on the old one stays there.
            assert (lease.replica.name, alive(old)) == ("b/0", True)
        await corral.loader.until(lambda: not corral.model("b").outgoing)
        await corral.until(lambda: not alive(old))
        assert corral.pid("a") == kept


@async_test
async def test_a_change_during_a_change_keeps_nobody_waiting_and_the_last_one_counts(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        with await corral.lease("a"):
            await corral.reload(config_of(tmp_path, {**A, "extra_args": SLOW}))
            model = corral.model("a")
            await corral.until(lambda: model.incoming[0].pid is not None)
            slow = model.incoming[0].pid
            assert slow is not None
            await corral.reload(config_of(tmp_path, {**A, "parallel": 3}))
            # What runs goes on serving, though it has a call that does not end.
            with await corral.lease("a") as lease:
                assert lease.replica.name == "a/0"
        await corral.loader.until(lambda: model.children[0].replica.name == "a/2" and not model.outgoing)
        await corral.until(lambda: not alive(slow))
        assert (await corral.lease("a")).replica.slots == 3


@async_test
async def test_models_are_added_and_removed(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A, C)) as corral:
        await corral.use("a")
        with await corral.lease("a"):
            pid = corral.pid("a")
            assert await corral.reload(config_of(tmp_path, B, C)) == Changed(added=("b",), removed=("a",))
            with pytest.raises(ModelNotFound):
                await corral.lease("a")
            await corral.use("b")
            assert alive(pid)
        await corral.until(lambda: not alive(pid))
        await corral.loader.until(lambda: set(corral.loader.models) == {"b", "c"})


@async_test
async def test_a_model_that_comes_back_while_it_leaves_is_another_one(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A, B)) as corral:
        with await corral.lease("a"):
            pid = corral.pid("a")
            await corral.reload(config_of(tmp_path, B))
            await corral.reload(config_of(tmp_path, A, B))
            await corral.use("a")
            assert corral.pid("a") != pid
            assert alive(pid)
        await corral.until(lambda: not alive(pid))
        await corral.loader.until(lambda: set(corral.loader.models) == {"a", "b"})


@async_test
async def test_who_waits_for_a_model_that_is_removed_is_told_so(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, {**A, "extra_args": ("--load-s", "600")}, B)) as corral:
        waiter = await corral.waiting("a")
        await corral.until_phase("a", Phase.LOADING)
        await corral.reload(config_of(tmp_path, B))
        with pytest.raises(ModelNotFound, match="does not exist any more"):
            await waiter


@async_test
async def test_rules_are_adjusted_without_touching_processes(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        pid = corral.pid("a")
        again = {**A, "aliases": ("z",), "pinned": True, "idle_ttl_s": 1.0, "description": "new", "strip": ("seed",)}
        assert await corral.reload(config_of(tmp_path, again, memory_bytes=2**30)) == Changed(adjusted=("a",))
        model = corral.model("a")
        assert (corral.pid("a"), model.pinned, model.residency.idle_ttl_s) == (pid, True, 1.0)
        assert corral.loader.settings.memory_bytes == 2**30
        await corral.use("z")


@async_test
async def test_wrong_settings_change_nothing(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        pid = corral.pid("a")

        def wrong() -> Config:
            raise ConfigError(["queue.lenght: there is no such setting"])

        corral.assembly._source = wrong
        with pytest.raises(ConfigError, match="lenght"):
            await corral.assembly.reload()
        await corral.use("a")
        assert corral.pid("a") == pid


@async_test
async def test_what_counts_after_a_restart_is_named_and_the_host_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, A)
    async with reloading(config) as corral:
        corral.config = config.model_copy(update={"server": ServerSettings(port=1, body_bytes=5)})
        for _ in range(2):
            assert (await corral.assembly.reload()).restart_needed == ("server.port", "server.body_size")
        corral.config = config.model_copy(update={"server": ServerSettings(host="0.0.0.0")})
        with pytest.raises(ConfigError, match=r"server\.host: cannot be changed while Corral runs"):
            await corral.assembly.reload()


@async_test
async def test_limits_and_what_requests_may_say_change_at_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, A)
    async with reloading(config) as corral:
        exchange = corral.assembly.exchange
        call, record = Call(Endpoint.CHAT, "a", {}), Record("req_1", Endpoint.CHAT, 0.0, 0.0)
        ask = partial(exchange.limiter.admit, Principal("team_a"), call, "a", record, lambda: None)
        await ask()
        await corral.reload(config.model_copy(update={"requests": RequestSettings(default_max_tokens=7)}))
        assert exchange.policy_of("a").default_max_tokens == 7
        assert (b"x-ratelimit-remaining-requests", b"598") in (await ask()).headers
        # What has been counted stays counted.
        await corral.reload(config.model_copy(update={"limits": LimitSettings(requests=3)}))
        assert (b"x-ratelimit-remaining-requests", b"0") in (await ask()).headers
        with pytest.raises(RateLimited):
            await ask()


@async_test
async def test_a_model_that_moves_elsewhere_is_served_there(tmp_path: Path) -> None:
    with FakeLlama() as first, FakeLlama() as second:
        elsewhere = {"name": "a", "file": None, "remote": ({"url": first.url},)}
        async with reloading(config_of(tmp_path, A, B)) as corral:
            await corral.use("a")
            pid = corral.pid("a")
            assert await corral.reload(config_of(tmp_path, elsewhere, B)) == Changed(replaced=("a",))
            assert str((await corral.lease("a")).replica.address) == first.url.removeprefix("http://")
            await corral.until(lambda: not alive(pid))
            kept = corral.assembly.fleet.pool("a").replicas[0]
            both = {**elsewhere, "remote": ({"url": first.url}, {"url": second.url, "weight": 2.0})}
            assert await corral.reload(config_of(tmp_path, both, B)) == Changed(replaced=("a",))
            replicas = corral.assembly.fleet.pool("a").replicas
            assert (replicas[0] is kept, replicas[1].weight) == (True, 2.0)
            await corral.until(lambda: replicas[1].ready)
            assert await corral.reload(config_of(tmp_path, both, B)) == Changed()
            await corral.reload(config_of(tmp_path, elsewhere, B))
            assert corral.assembly.fleet.pool("a").replicas == (kept,)


@async_test
async def test_a_remote_replica_that_comes_first_gets_a_name_of_its_own(tmp_path: Path) -> None:
    with FakeLlama() as first, FakeLlama() as second:
        before = {**A, "file": None, "remote": (first.url,)}
        async with reloading(config_of(tmp_path, before)) as corral:
            await corral.use("a")
            await corral.reload(config_of(tmp_path, {**before, "remote": (second.url, first.url)}))
            named = {str(each.address): each.name for each in corral.assembly.fleet.pool("a").replicas}
            assert named == {first.url.removeprefix("http://"): "a/0", second.url.removeprefix("http://"): "a/1"}


@async_test
async def test_ten_reloads_at_once_leave_the_last_in_force(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        pid = corral.pid("a")
        corral.config = config_of(tmp_path, A, B)
        await asyncio.gather(*(corral.assembly.reload() for _ in range(10)))
        await corral.use("b")
        assert corral.pid("a") == pid
