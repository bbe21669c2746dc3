"""The limits in a real Valkey: they say what those in memory say, and hold for several Corrals at once."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.core.limits import COUNTED, Limit, Rules
from corral.core.meters import Moment
from corral.core.tally import Book, Share, Tally, Verdict
from corral.core.tally import settle as settle_in_memory
from corral.valkey.shared_limits import SharedLimits
from support.run import async_test
from support.sharing import INSTANT_S, Clock, must_take, rules_of, sharing

# -- the same as in memory ----------------------------------------------------

# Few sizes, so that what is left is often just enough.
STEP = 50


def steps(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most).map(lambda number: number * STEP)


values = st.fixed_dictionaries(
    {},
    optional={
        Limit.REQUESTS: st.integers(1, 6),
        Limit.TOKENS: steps(8),
        Limit.IN_FLIGHT: st.integers(1, 4),
        Limit.TOKENS_DAY: steps(12),
        Limit.TOKENS_MONTH: steps(18),
    },
).map(lambda chosen: {limit: chosen[limit] for limit in COUNTED if limit in chosen})
events = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 1500)),
        st.tuples(st.just("ask"), steps(9)),
        st.tuples(st.just("ask"), steps(2)),
        st.tuples(st.just("end"), steps(3)),
        st.tuples(st.just("end"), st.integers(0, 120)),
        st.tuples(st.just("fail"), st.integers(0, 100)),
        st.tuples(st.just("restore"), st.integers(0, 500)),
    ),
    max_size=60,
)


class InMemory:
    """One account counted in this process. Written by the test."""

    def __init__(self, rules: Rules, clock: Clock) -> None:
        self._clock = clock
        self.tallies = [Tally(rules.window_s) for _ in rules.scopes]
        self._book = Book(rules, self.tallies)

    @property
    def at(self) -> Moment:
        return Moment(self._clock.now, self._clock.now)

    def take(self, tokens: int) -> tuple[Verdict, list[Share]]:
        return self._book.take(tokens, self.at)


def same(one: Verdict, other: Verdict) -> None:
    """Both said the same of everything; times may differ by a microsecond."""
    for ours, theirs in (
        (one.standings, other.standings),
        (one.refused, other.refused),
        (one.shadowed, other.shadowed),
    ):
        assert sorted((s.limit.value, s.model, s.value, s.left) for s in ours) == sorted(
            (s.limit.value, s.model, s.value, s.left) for s in theirs
        )
        for a, b in zip(sorted(ours, key=_of), sorted(theirs, key=_of), strict=True):
            assert a.reset_s == pytest.approx(b.reset_s, abs=3e-6)
            assert (a.wait_s is None) == (b.wait_s is None)
            if a.wait_s is not None:
                assert a.wait_s == pytest.approx(b.wait_s, abs=3e-6)


def _of(standing: Any) -> tuple[str, str]:
    return standing.limit.value, standing.model


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values, values, st.frozensets(st.sampled_from(COUNTED), max_size=2), events)
def test_the_same_things_happen_in_memory_and_in_valkey(
    valkey_url: str, whole: dict[Limit, int], model: dict[Limit, int], shadow: frozenset[Limit], happening: Any
) -> None:
    @async_test
    async def run() -> None:
        clock = Clock()
        rules = rules_of(whole, model, shadow=shadow)
        memory = InMemory(rules, clock)
        running: list[tuple[list[Share], Any]] = []
        # Longer than the test: leases are another one's matter.
        async with sharing(valkey_url, clock, lease_s=100_000.0) as limits:
            for kind, number in happening:
                if kind == "pass":
                    clock.now += number * INSTANT_S
                elif kind == "ask":
                    ours, shares = memory.take(number)
                    theirs, settle = await must_take(limits, rules, number)
                    same(ours, theirs)
                    if not ours.refused:
                        running.append((shares, settle))
                elif kind == "restore":
                    memory.tallies[0].day.restore(number, clock.now)
                    memory.tallies[0].month.restore(number + 50, clock.now)
                    limits.restore(rules.account, number, number + 50, clock.now)
                elif running:
                    shares, settle = running.pop(number % len(running))
                    used, ran = (number, True) if kind == "end" else (0, False)
                    settle_in_memory(shares, used, memory.at, ran=ran)
                    settle(used, ran)

    run()


@async_test
async def test_a_limit_that_has_become_smaller_waits_for_as_many_to_leave(valkey_url: str) -> None:
    clock = Clock()
    async with sharing(valkey_url, clock) as limits:
        wide = rules_of({Limit.REQUESTS: 9})
        for _ in range(5):
            await must_take(limits, wide)
            clock.now += 1
        narrow = replace(wide, scopes=rules_of({Limit.REQUESTS: 2}).scopes)
        verdict, settle = await must_take(limits, narrow)
        assert settle is None
        # The fourth of five has to leave, which was let in two seconds ago.
        assert [(standing.left, standing.wait_s) for standing in verdict.refused] == [(0, 14.0)]


# -- several Corrals ----------------------------------------------------------


@async_test
async def test_several_corrals_never_let_in_more_than_one_would(valkey_url: str) -> None:
    rules = rules_of({Limit.REQUESTS: 50, Limit.TOKENS: 10_000, Limit.IN_FLIGHT: 7, Limit.TOKENS_DAY: 1_000_000})
    running = most = admitted = used = 0

    async def client(limits: SharedLimits) -> None:
        nonlocal running, most, admitted, used
        for tokens in (300, 500, 100):
            verdict, settle = await must_take(limits, rules, tokens)
            if verdict.refused:
                continue
            running, admitted, used = running + 1, admitted + 1, used + tokens
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            settle(tokens, True)

    async with (
        sharing(valkey_url, name="a") as a,
        sharing(valkey_url, name="b") as b,
        sharing(valkey_url, name="c") as c,
    ):
        async with asyncio.TaskGroup() as tasks:
            for number in range(90):
                tasks.create_task(client((a, b, c)[number % 3]))
        await a._link.drain()
        verdict, _ = await must_take(a, rules, 10_000)
    assert 0 < most <= 7
    assert 7 <= admitted <= 50
    assert used <= 10_000
    left = {standing.limit: standing.left for standing in verdict.standings}
    assert (left[Limit.TOKENS], left[Limit.IN_FLIGHT]) == (10_000 - used, 7)


@async_test
async def test_what_a_corral_that_died_had_in_flight_is_free_after_the_lease(valkey_url: str) -> None:
    clock = Clock()
    rules = rules_of({Limit.REQUESTS: 10, Limit.TOKENS: 1000, Limit.IN_FLIGHT: 2})
    async with sharing(valkey_url, clock) as living, sharing(valkey_url, clock) as dying:
        await must_take(living, rules, 100)
        await must_take(dying, rules, 300)
        clock.now += 14
        living._refresh()
        verdict, _ = await must_take(living, rules, 100)
        assert [standing.limit for standing in verdict.refused] == [Limit.IN_FLIGHT]
        clock.now += 1
        verdict, _ = await must_take(living, rules, 100)
        assert not verdict.refused
        # Its tokens may have been used until its end: they count for a window from when it was last heard of.
        left = {standing.limit: standing.left for standing in verdict.standings}
        assert left[Limit.TOKENS] == 500
        clock.now += 16 - INSTANT_S
        living._refresh()
        verdict, _ = await must_take(living, rules, 600)
        assert {standing.limit for standing in verdict.refused} == {Limit.TOKENS, Limit.IN_FLIGHT}
        clock.now += INSTANT_S
        verdict, _ = await must_take(living, rules, 600)
        assert {standing.limit for standing in verdict.refused} == {Limit.IN_FLIGHT}


@async_test
async def test_a_settlement_that_comes_twice_counts_once(valkey_url: str) -> None:
    rules = rules_of({Limit.TOKENS: 1000, Limit.IN_FLIGHT: 5, Limit.TOKENS_DAY: 1000})
    async with sharing(valkey_url) as limits:
        await must_take(limits, rules, 100)
        _, settle = await must_take(limits, rules, 100)
        settle(50, True)
        settle(50, True)
        verdict, _ = await must_take(limits, rules, 100)
    assert [standing.left for standing in verdict.standings] == [750, 3, 750]


@async_test
async def test_a_client_that_leaves_while_it_is_asked_takes_nothing(valkey_url: str) -> None:
    rules = rules_of({Limit.REQUESTS: 1, Limit.TOKENS: 100, Limit.IN_FLIGHT: 1, Limit.TOKENS_DAY: 100})
    async with sharing(valkey_url) as limits:
        for turns in range(12):
            leaver = asyncio.create_task(limits.take(rules, 100))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaver.cancel()
            with suppress(asyncio.CancelledError):
                taken = await leaver
                assert taken is not None
                assert taken[1] is not None
                taken[1](0, False)
        verdict, _ = await must_take(limits, rules, 100)
        assert not verdict.refused


@async_test
async def test_one_that_is_given_back_before_it_comes_is_not_taken(valkey_url: str) -> None:
    rules = rules_of({Limit.REQUESTS: 1, Limit.IN_FLIGHT: 1})
    async with sharing(valkey_url) as limits:
        limits._new_id = lambda: "the-same"
        _, settle = await must_take(limits, rules)
        assert settle is not None
        settle(0, False, void=True)
        assert await limits.take(rules, 0) is None
        limits._new_id = lambda: uuid4().hex
        verdict, _ = await must_take(limits, rules)
        assert not verdict.refused


@async_test
async def test_keys_go_when_nothing_counts_any_more_and_are_in_one_slot_of_a_cluster(valkey_url: str) -> None:
    from redis.asyncio import Redis

    rules = rules_of(dict.fromkeys(COUNTED, 1000))
    client = Redis.from_url(valkey_url)
    async with client, sharing(valkey_url) as limits:
        _, settle = await must_take(limits, rules, 10)
        settle(5, True)
        await must_take(limits, rules, 10)
        names = [name async for name in client.scan_iter(f"test:limits:*{rules.account}*")]
        assert len(names) == 7
        assert all(f"{{{rules.account}}}".encode() in name for name in names)
        assert min([await client.pttl(name) for name in names]) > 0
