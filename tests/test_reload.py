"""Settings that change while Corral runs: only what has changed is touched, and wrong ones change nothing."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corral.assembly import Assembly
from corral.config import (
    ApiKey,
    AuthSettings,
    Config,
    LimitSettings,
    QueueSettings,
    RequestSettings,
    ServerSettings,
    StoreSettings,
    key_digest,
)
from corral.core.call import Call, Endpoint
from corral.core.errors import ConfigError, ModelNotFound, NotReady, RateLimited, ShuttingDown, Unauthorized
from corral.core.lifecycle import Phase
from corral.core.principal import Principal
from corral.core.record import Record
from corral.upstream.changes import Changed
from corral.upstream.maker import MARGIN_BYTES
from support.children import alive
from support.fake import FakeLlama
from support.fleets import LARGE, MIB, Running, config_of
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


@pytest.mark.parametrize("budget", [None, 2 * LARGE + 5 * MIB])
@async_test
async def test_a_change_during_a_change_keeps_nobody_waiting_and_the_last_one_counts(
    tmp_path: Path, budget: int | None
) -> None:
    before = {**A, "memory_bytes": LARGE}
    async with reloading(config_of(tmp_path, before, memory_bytes=budget)) as corral:
        await corral.use("a")
        with await corral.lease("a"):
            await corral.reload(config_of(tmp_path, {**before, "extra_args": SLOW}, memory_bytes=budget))
            model = corral.model("a")
            await corral.until(lambda: model.incoming[0].pid is not None)
            slow = model.incoming[0].pid
            assert slow is not None
            await corral.reload(config_of(tmp_path, {**before, "parallel": 3}, memory_bytes=budget))
            # What runs goes on serving, though it has a call that does not end.
            with await corral.lease("a") as lease:
                assert lease.replica.name == "a/0"
            await corral.until(lambda: bool(model.incoming) and model.incoming[0].pid is not None)
            assert budget is None or not alive(slow)
        await corral.loader.until(lambda: model.children[0].replica.slots == 3 and not model.outgoing)
        await corral.until(lambda: not alive(slow))
        assert (await corral.lease("a")).replica.slots == 3


@async_test
async def test_a_model_that_is_unloaded_during_a_change_is_loaded_as_the_change_wants_it(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        await corral.reload(config_of(tmp_path, {**A, "parallel": 3, "extra_args": ("--load-s", "0.5")}))
        assert corral.model("a").incoming
        corral.loader.unload(corral.model("a"))
        with await corral.lease("a") as lease:
            assert lease.replica.slots == 3


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
            # Its log, which has the replica's name, is another one as well.
            assert corral.model("a").children[0].replica.name == "a/1"
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
async def test_what_did_not_fit_the_budget_is_loaded_when_a_reload_makes_room(tmp_path: Path) -> None:
    always = {**A, "on_demand": False, "memory_bytes": LARGE}
    async with reloading(config_of(tmp_path, always, memory_bytes=LARGE - MIB)) as corral:
        await corral.until_phase("a", Phase.FAILED)
        # Still too little: it is tried, and refused again.
        await corral.reload(config_of(tmp_path, always, memory_bytes=LARGE - 2 * MIB))
        await corral.loader.until(lambda: "198 MiB" in (corral.model("a").error or ""))
        await corral.until_phase("a", Phase.FAILED)
        await corral.reload(config_of(tmp_path, always, memory_bytes=LARGE))
        await corral.use("a")


@async_test
async def test_what_did_not_fit_and_was_unloaded_stays_unloaded(tmp_path: Path) -> None:
    always = {**A, "on_demand": False, "memory_bytes": LARGE}
    async with reloading(config_of(tmp_path, always, memory_bytes=LARGE - MIB)) as corral:
        await corral.until_phase("a", Phase.FAILED)
        corral.loader.unload(corral.model("a"))
        await corral.reload(config_of(tmp_path, always, memory_bytes=LARGE))
        assert (corral.model("a").phase, corral.model("a").wanted) == (Phase.UNLOADED, False)


@async_test
async def test_what_could_not_be_started_is_not_tried_again_by_a_reload_of_the_same(tmp_path: Path) -> None:
    wrong = {**A, "on_demand": False, "extra_args": ("--bogus",)}
    async with reloading(config_of(tmp_path, wrong)) as corral:
        await corral.until_phase("a", Phase.FAILED)
        assert await corral.reload(config_of(tmp_path, wrong, B)) == Changed(added=("b",))
        assert corral.model("a").phase is Phase.FAILED


@async_test
async def test_a_change_that_failed_is_tried_again_by_the_next_reload(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        model, missing = corral.model("a"), tmp_path / "missing.gguf"
        after = {**A, "file": missing}
        assert await corral.reload(config_of(tmp_path, after)) == Changed(replaced=("a",))
        await corral.loader.until(lambda: model.error is not None and not model.incoming)
        missing.write_bytes(b"GGUF")
        assert await corral.reload(config_of(tmp_path, after)) == Changed(replaced=("a",))
        await corral.loader.until(lambda: model.children[0].spec.file == missing)
        assert model.error is None
        await corral.use("a")


@async_test
async def test_a_change_that_is_taken_back_leaves_what_runs(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        pid, model = corral.pid("a"), corral.model("a")
        await corral.reload(config_of(tmp_path, {**A, "extra_args": SLOW}))
        await corral.until(lambda: model.incoming[0].pid is not None)
        slow = model.incoming[0].pid
        assert slow is not None
        assert await corral.reload(config_of(tmp_path, A)) == Changed(adjusted=("a",))
        await corral.until(lambda: not alive(slow))
        await corral.use("a")
        assert (corral.pid("a"), model.changing) == (pid, False)


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


@pytest.mark.parametrize("other", [{}, {"parallel": 3}])
@async_test
async def test_a_model_that_no_longer_waits_for_requests_is_loaded(tmp_path: Path, other: dict[str, Any]) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.reload(config_of(tmp_path, {**A, "on_demand": False, **other}))
        await corral.until_phase("a", Phase.LOADED)
        with await corral.lease("a") as lease:
            assert lease.replica.slots == other.get("parallel", 2)


@pytest.mark.parametrize("other", [{}, {"description": "new"}, {"parallel": 3}])
@async_test
async def test_what_an_operator_has_unloaded_stays_unloaded(tmp_path: Path, other: dict[str, Any]) -> None:
    before = {**A, "on_demand": False}
    async with reloading(config_of(tmp_path, before, B)) as corral:
        await corral.use("a")
        corral.loader.unload(corral.model("a"))
        await corral.until_phase("a", Phase.UNLOADED)
        await corral.reload(config_of(tmp_path, {**before, **other}, {**B, "description": "new"}))
        assert not corral.model("a").wanted
        with pytest.raises(NotReady, match="model 'a' is not loaded"):
            await corral.lease("a")


@async_test
async def test_a_replacement_that_loads_counts_with_all_that_it_will_take(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        await corral.reload(config_of(tmp_path, {**A, "extra_args": SLOW}))
        model = corral.model("a")
        await corral.until(lambda: bool(model.incoming[0].resident_bytes))
        now = model.children[0].resident_bytes
        assert now is not None
        assert model.taken_bytes() >= now + MARGIN_BYTES


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({"memory_bytes": 2 * LARGE}, 6),
        ({"replicas": 1}, 4),
        ({"replicas": 1, "memory_bytes": 2 * LARGE}, 8),
        ({"replicas": 2, "memory_bytes": 3 * LARGE, "extra_args": SLOW}, 9),
    ],
)
@async_test
async def test_each_process_counts_with_what_the_operator_says_of_it(
    tmp_path: Path, changed: dict[str, Any], taken: int
) -> None:
    before = {**A, "memory_bytes": LARGE, "replicas": 3}
    async with reloading(config_of(tmp_path, before)) as corral:
        with await corral.lease("a"):
            # The second says nothing new.
            for _ in range(2):
                await corral.reload(config_of(tmp_path, {**before, **changed}))
                assert corral.model("a").taken_bytes() == taken * LARGE


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
async def test_a_reload_that_has_not_read_the_settings_by_the_end_changes_nothing(tmp_path: Path) -> None:
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    elsewhere = config_of(tmp_path, A, {**B, "file": None, "remote": ("http://127.0.0.1:9",)})

    def slowly() -> Config:
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        return elsewhere

    assembly = Assembly(config_of(tmp_path, A), slowly)
    async with assembly.running():
        reload = asyncio.create_task(assembly.reload())
        await begun.wait()
    go.set()
    with pytest.raises(ShuttingDown):
        await reload
    # Who reloads without being told of it is not disturbed either.
    await assembly.reload_and_tell()
    assert set(assembly.fleet.entries) == {"a"}


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
async def test_the_log_warns_once_of_clients_that_no_key_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path, A)
    async with reloading(config) as corral:
        await corral.reload(config.model_copy(update={"queue": QueueSettings(batch=("x", "anonymous", "y"))}))
    told = [vars(record)["fields"] for record in caplog.records if record.levelname == "WARNING"]
    assert told == [{"clients": [f"queue.batch: no key has the client {name}" for name in "xy"]}]


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
async def test_a_remote_replica_keeps_its_calls_when_its_weight_and_key_change(tmp_path: Path) -> None:
    with FakeLlama(api_key="secret") as llama:
        for key in ("secret", "other"):
            (tmp_path / key).write_text(key)
        remote = {"url": llama.url, "key_file": str(tmp_path / "secret")}
        before = {**A, "file": None, "remote": (remote,)}
        after = {**A, "file": None, "remote": ({**remote, "key_file": str(tmp_path / "other"), "weight": 2.0},)}
        async with reloading(config_of(tmp_path, before)) as corral:
            with await corral.lease("a") as lease:
                assert await corral.reload(config_of(tmp_path, after)) == Changed(adjusted=("a",))
                (replica,) = corral.assembly.fleet.pool("a").replicas
                assert (replica is lease.replica, replica.busy) == (True, 1)
                assert (replica.key, replica.weight) == ("other", 2.0)
                # The new key is tried at once.
                await corral.until(lambda: not replica.ready)
            await corral.reload(config_of(tmp_path, before))
            await corral.use("a")


@async_test
async def test_the_last_key_is_not_taken_away_for_a_store_that_counts_from_the_next_start_on(tmp_path: Path) -> None:
    keyed = AuthSettings(keys=(ApiKey(digest=key_digest("one"), client="one"),))
    store = StoreSettings(file=tmp_path / "corral.db")
    before = config_of(tmp_path, A).model_copy(update={"auth": keyed, "store": store})
    async with reloading(before) as corral:
        # As ``corral keys create`` makes it.
        store.file.touch()
        with pytest.raises(ConfigError, match="no other key is set"):
            await corral.reload(before.model_copy(update={"auth": AuthSettings()}))
        with pytest.raises(Unauthorized):
            corral.assembly.exchange.keyring.authenticate([])
        await corral.reload(before)


@async_test
async def test_ten_reloads_at_once_leave_the_last_in_force(tmp_path: Path) -> None:
    async with reloading(config_of(tmp_path, A)) as corral:
        await corral.use("a")
        pid = corral.pid("a")
        corral.config = config_of(tmp_path, A, B)
        await asyncio.gather(*(corral.assembly.reload() for _ in range(10)))
        await corral.use("b")
        assert corral.pid("a") == pid
