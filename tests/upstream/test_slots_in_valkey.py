"""Shared slots in a real Valkey: the rule of the script, several Corrals, deaths, and a Valkey that comes and goes."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from corral.config import ValkeySettings
from corral.core.errors import SharedStateAway
from corral.core.holding import Answer, Ask
from corral.upstream.lease import Lease
from corral.upstream.shared.book import Message, ValkeyBook, settle_s
from corral.upstream.shared.sharing import Sharing
from corral.valkey.listener import Listener
from corral.valkey.lost import ValkeyLost
from support.loops import LOOPS, NewLoop, on_both_loops
from support.pools import demand_of, leasing
from support.ports import free_port
from support.services import valkey
from support.sharers import Sharer
from support.sharing import linked
from support.slot_books import MemoryBook

SLOTS = 4
# Long enough for a busy machine to state anew what is held; short enough to wait for.
LEASE_S = 2.0
LIMIT_S = 20.0

Step = tuple[int, int, list[int]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with valkey() as running:
        yield running


def settings_of(
    url: str, *, prefix: str = "", lease_s: float = LEASE_S, away: Literal["refuse", "share"] = "refuse"
) -> ValkeySettings:
    """In a corner of its own, if no other is named."""
    return ValkeySettings(
        url=SecretStr(url), prefix=prefix or f"test-{uuid4().hex}", lease_s=lease_s, away=away, corrals=2
    )


@asynccontextmanager
async def book_of(url: str, **given: float) -> AsyncIterator[ValkeyBook]:
    async with booked(settings_of(url, **given)) as book:  # type: ignore[arg-type]  # mypy does not know which
        yield book


@asynccontextmanager
async def booked(settings: ValkeySettings) -> AsyncIterator[ValkeyBook]:
    assert settings.url is not None
    url = settings.url.get_secret_value()
    async with linked(url, settings.timeout_s, settings.prefix) as link:
        yield ValkeyBook(settings, link, Listener(url, settings.timeout_s))


@asynccontextmanager
async def corrals(*given: ValkeySettings) -> AsyncIterator[list[Sharer]]:
    """Corrals with one replica each, which is the same one."""
    async with AsyncExitStack() as stack:
        sharings = [Sharing(each, await stack.enter_async_context(booked(each))) for each in given]
        several = [Sharer(sharing, [SLOTS]).begin(asyncio.get_running_loop()) for sharing in sharings]
        try:
            yield several
        finally:
            for corral in several:
                corral.end()
                await corral.ended()


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not claim():  # noqa: ASYNC110  (not all of it sets an event)
            await asyncio.sleep(0.01)


# The rule.


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.lists(st.integers(1, 5), max_size=3)), max_size=12
    )
)
@settings(max_examples=150, deadline=None)
def test_the_script_and_the_book_in_memory_go_by_the_same_rule(url: str, steps: list[Step]) -> None:
    asyncio.run(the_same(url, steps))


async def the_same(url: str, steps: list[Step]) -> None:
    memory = MemoryBook(lambda: 0.0, lease_s=1000.0)
    async with book_of(url, lease_s=1000.0) as book, book.listen() as said, memory.listen() as expected:
        for who, keep, tasks in steps:
            holder, ask = f"corral {who}", Ask(SLOTS, min(keep, memory.held_by(f"corral {who}", "r")), tuple(tasks))
            assert figures(await book.hold(holder, "r", ask)) == figures(memory.decide(holder, "r", ask))
        end = Ask(SLOTS, 1, ())
        await book.hold("the end", "s", end)
        memory.decide("the end", "s", end)
        assert await until_end(said) == await until_end(expected)


def figures(answer: Answer) -> tuple[int, int, int]:
    """What does not depend on a clock."""
    return answer.granted, answer.others, answer.ahead


async def until_end(said: AsyncIterator[Message]) -> list[tuple[str, int]]:
    heard = []
    async for message in said:
        heard.append((message.name, message.total))
        if message.name == "s":
            return heard
    return heard


@on_both_loops
async def test_what_is_not_stated_anew_ends_and_who_waits_knows_when(url: str) -> None:
    async with book_of(url, lease_s=0.3) as book:
        await book.hold("dead", "r", Ask(1, 0, (1,)))
        answer = await book.hold("alive", "r", Ask(1, 0, (1,)))
        assert answer.granted == 0
        assert answer.expires_s is not None
        assert 0.0 < answer.expires_s <= 0.3
        await asyncio.sleep(answer.expires_s)
        await until_granted(book)


@on_both_loops
async def test_a_time_in_which_nobody_could_say_anything_takes_nothing_from_anybody(url: str) -> None:
    async with book_of(url, lease_s=0.3) as book:
        await book.hold("dead", "r", Ask(1, 0, (1,)))
        # Longer than the lease, by the server's clock.
        await asyncio.sleep(0.4)
        answer = await book.hold("alive", "r", Ask(1, 0, (1,)))
        assert (answer.granted, answer.others) == (0, 1)
        await until_granted(book)


@on_both_loops
async def test_what_nobody_states_after_such_a_time_is_kept_once(url: str) -> None:
    given = settings_of(url, lease_s=0.3)
    async with book_of(url, lease_s=0.3) as book:
        await book.hold("dead", "r", Ask(1, 0, (1,)))
        await asyncio.sleep(0.4)
        assert (await book.hold("alive", "r", Ask(1, 0, ()))).others == 1
        # Longer than it is kept for, and again a time in which nobody says anything.
        await asyncio.sleep(settle_s(given) + 0.1)
        answer = await book.hold("alive", "r", Ask(1, 0, (1,)))
        assert (answer.granted, answer.others) == (1, 0)


async def until_granted(book: ValkeyBook) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await book.hold("alive", "r", Ask(1, 0, (1,)))).granted == 0:  # noqa: ASYNC110  (a server's clock)
            await asyncio.sleep(0.01)


# Several Corrals.


@on_both_loops
async def test_never_more_in_flight_than_slots_whoever_comes_and_leaves(url: str) -> None:
    given = settings_of(url)
    async with corrals(given, given, given) as several, asyncio.TaskGroup() as tasks:
        load = Load(random.Random(7))
        for corral in several:
            for _ in range(12):
                tasks.create_task(load.client(corral))
    assert load.most == SLOTS
    assert load.in_flight == 0
    assert load.served > 100


class Load:
    """Clients that ask one after the other; some lose patience. Written by them."""

    def __init__(self, chance: random.Random) -> None:
        self.in_flight = self.most = self.served = 0
        self._chance = chance

    async def client(self, corral: Sharer) -> None:
        for _ in range(8):
            tasks = self._chance.choice([1, 1, 1, 2, 4])
            try:
                async with asyncio.timeout(self._chance.choice([0.01, 10.0, 10.0, 10.0])):
                    await self._call(corral, tasks)
            except TimeoutError:
                pass

    async def _call(self, corral: Sharer, tasks: int) -> None:
        with await corral.pool.lease(demand_of(tasks)):
            self.in_flight += tasks
            try:
                self.most = max(self.most, self.in_flight)
                assert self.in_flight <= SLOTS
                await asyncio.sleep(self._chance.random() * 0.01)
            finally:
                self.in_flight -= tasks
        self.served += 1


@on_both_loops
async def test_a_corral_that_dies_gives_its_slots_to_who_waits(url: str) -> None:
    given = settings_of(url, lease_s=1.0)
    async with corrals(given, given) as (dies, stays):
        await dies.pool.lease(demand_of(SLOTS))
        waits = await leasing(stays.pool, SLOTS)
        await until(lambda: stays.replicas[0].elsewhere == SLOTS)
        dies.die()
        with await waits:
            assert stays.replicas[0].elsewhere == 0


@on_both_loops
async def test_a_corral_that_ends_gives_its_slots_back_at_once(url: str) -> None:
    given = settings_of(url, lease_s=1000.0)
    async with corrals(given, given) as (ends, stays):
        lease = await ends.pool.lease(demand_of(SLOTS))
        waits = await leasing(stays.pool, 1)
        with lease:
            pass
        ends.end()
        with await waits:
            pass


# A Valkey that comes and goes.


async def refused(corral: Sharer) -> bool:
    try:
        with await corral.pool.lease(demand_of()):
            return False
    except SharedStateAway:
        return True


async def until_refused(corral: Sharer) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await refused(corral):  # noqa: ASYNC110  (nothing tells when)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_valkey_that_ends_and_begins_again_is_used_again_without_a_restart(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "corral.sharing")
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(away_and_back("refuse"))
    # Of both; at the end Valkey goes once more.
    told = [record.message for record in caplog.records if record.name == "corral.sharing"]
    assert sorted(told[:4]) == ["valkey lost"] * 2 + ["valkey returned"] * 2


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_while_valkey_is_away_each_takes_its_share(new_loop: NewLoop) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(away_and_back("share"))


async def away_and_back(away: Literal["refuse", "share"]) -> None:
    port = free_port()
    with valkey(port) as url:
        given = settings_of(url, away=away)
        async with corrals(given, given) as (first, second):
            runs = await first.pool.lease(demand_of())
            stopped = asyncio.Event()
            # The services of tests are started and stopped by blocks, which this one has to leave and enter again.
            waiting = asyncio.create_task(back_again(port, stopped, runs, (first, second), away))
            await stop(url)
            stopped.set()
            await waiting


async def stop(url: str) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        await client.shutdown(nosave=True)


async def back_again(
    port: int, stopped: asyncio.Event, runs: Lease, both: tuple[Sharer, Sharer], away: Literal["refuse", "share"]
) -> None:
    first, second = both
    await stopped.wait()
    await until(lambda: first.sharing.lost and second.sharing.lost)
    if away == "refuse":
        await until_refused(first)
    else:
        # Half of four each, of which one runs.
        with await first.pool.lease(demand_of()), await second.pool.lease(demand_of(2)):
            assert first.replicas[0].free == second.replicas[0].free == 0
    with valkey(port):
        await until(lambda: not (first.sharing.lost or second.sharing.lost))
        with await second.pool.lease(demand_of(3)):
            assert second.replicas[0].elsewhere == 1
            with runs:
                pass
            await until(lambda: second.replicas[0].elsewhere == 0)


# What is told.


@on_both_loops
async def test_what_others_say_in_the_channel_is_passed_over(url: str) -> None:
    from redis.asyncio import Redis

    given = settings_of(url)
    async with Redis.from_url(url) as stranger, booked(given) as book, book.listen() as said:
        for text in ("hello", "1 x r", "1 2"):
            await stranger.publish(f"{given.prefix}:slots", text)
        await book.hold("corral", "host:1/a b", Ask(1, 1, ()))
        message = await anext(said)
    assert (message.name, message.total) == ("host:1/a b", 1)


@on_both_loops
async def test_a_valkey_that_cannot_be_written_is_away(url: str) -> None:
    from redis.asyncio import Redis

    given = settings_of(url)
    async with Redis.from_url(url) as operator, corrals(given) as (corral,):
        await corral.pool.lease(demand_of())
        await operator.config_set("maxmemory", "1")
        try:
            await until_refused(corral)
            await asyncio.sleep(0)
            assert corral.sharing.lost
        finally:
            await operator.config_set("maxmemory", "0")
        await until(lambda: not corral.sharing.lost)
        assert not await refused(corral)


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_what_is_told_of_an_error_holds_nothing_of_the_url(url: str, scheme: str) -> None:
    secret = url.replace("redis://", f"{scheme}://nobody:a-secret@")

    async def ask() -> None:
        async with book_of(secret) as book:
            await book.start()

    with pytest.raises(ValkeyLost) as lost:
        asyncio.run(ask())
    assert "secret" not in str(lost.value)
    assert "127.0.0.1" not in str(lost.value)
    assert str(lost.value).startswith("AuthenticationError")


def test_a_valkey_that_does_not_answer_is_lost_after_its_time() -> None:
    async def ask() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            async with booked(ValkeySettings(url=SecretStr(f"redis://127.0.0.1:{port}"), timeout_s=0.05)) as book:
                with pytest.raises(ValkeyLost):
                    await book.hold("corral", "r", Ask(1, 0, (1,)))
                with pytest.raises(ValkeyLost):
                    async with book.listen():
                        pass

    asyncio.run(ask())
