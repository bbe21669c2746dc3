"""A call goes where it costs least, and never where it cannot fit."""

import pytest

from corral.core.balance import HOLD_LIMIT_S, Balance
from corral.core.call import Call, Endpoint
from corral.core.demand import Demand
from corral.core.errors import ContextLengthExceeded, InvalidRequest
from corral.core.lifecycle import State
from corral.core.principal import ANONYMOUS, Principal
from corral.core.usage import Usage
from corral.upstream.lease import Lease
from corral.upstream.pool import Pool
from corral.upstream.replica import Replica
from support.pools import demand_of, leasing, pool_of, replica_of
from support.virtual_time import advance, in_virtual_time

LONG = "a long story " * 100
OTHER = "another story " * 100


def end(lease: Lease, usage: Usage | None = None, *, prefill_s: float = 1.0, failed: bool | None = False) -> None:
    """The call has been answered; with its usage if a token came."""
    with lease:
        lease.failed = failed
        if usage is not None:
            lease.usage, lease.prefill_s = usage, prefill_s


async def asked(pool: Pool, text: str, *, cached: int = 0, prefill_s: float = 1.0) -> Lease:
    """A call that was served, of a thousand tokens."""
    lease = await pool.lease(demand_of(text=text))
    end(lease, Usage(1000, cached, 1), prefill_s=prefill_s)
    return lease


def pair(slots: int = 2) -> tuple[Replica, Replica]:
    return replica_of(slots, "first"), replica_of(slots, "second")


# Caches.


@in_virtual_time
async def test_a_conversation_stays_where_its_beginning_is_cached() -> None:
    pool = pool_of(*pair())
    home = (await asked(pool, LONG)).replica
    elsewhere = (await asked(pool, OTHER)).replica
    assert elsewhere is not home
    for turn in range(4):
        lease = await pool.lease(demand_of(text=LONG + "and on it went " * turn))
        assert (lease.replica, lease.reason) == (home, "cached")
        end(lease)
    assert pool.routing.decisions["cached"] == 4
    assert pool.routing.decisions["uncached"] == 2


@in_virtual_time
async def test_a_prompt_counts_as_cached_only_after_it_was_read() -> None:
    pool = pool_of(*pair())
    lease = await pool.lease(demand_of(text=LONG))
    end(lease, failed=True)
    lease = await pool.lease(demand_of(text=LONG))
    assert lease.reason == "uncached"
    end(lease)


@in_virtual_time
async def test_a_cache_that_was_foreseen_and_was_not_there_takes_what_is_older_with_it() -> None:
    home, other = pair()
    pool = pool_of(home, other)
    long, story = demand_of(text=LONG), demand_of(text=OTHER)
    for demand, cached in ((long, 0), (story, 0), (story, 990)):
        end(await pool.lease(demand, avoid=[other]), Usage(1000, cached, 1))
        assert home.prefixes.matched(long.prompt) > 0
    end(await pool.lease(story, avoid=[other]), Usage(1000, 0, 1))
    assert home.prefixes.matched(long.prompt) == 0
    # This one has been read again.
    assert home.prefixes.matched(story.prompt) > 0


@in_virtual_time
async def test_what_was_foreseen_is_told_in_tokens() -> None:
    pool = pool_of(*pair())
    await asked(pool, LONG)
    lease = await asked(pool, LONG, cached=980)
    assert lease.foreseen_tokens is not None
    assert 800 < lease.foreseen_tokens <= 1000


@in_virtual_time
async def test_the_cache_of_a_server_that_was_started_anew_is_empty() -> None:
    first, second = pair()
    pool = pool_of(first, second)
    home = (await asked(pool, LONG)).replica
    home.become(State.LOADING, "x")
    home.become(State.READY, "x")
    lease = await pool.lease(demand_of(text=LONG))
    assert lease.reason == "uncached"
    end(lease)


@in_virtual_time
async def test_nothing_is_kept_of_a_replica_that_has_gone() -> None:
    first, second = pair()
    pool = pool_of(first, second)
    home = (await asked(pool, LONG)).replica
    stays = second if home is first else first
    late = await pool.lease(demand_of(text=LONG))
    assert late.replica is home
    fresh = replica_of(2, home.name)
    pool.change([stays, fresh])
    end(late, Usage(1000, 900, 1))
    assert [len(replica.prefixes) for replica in pool.routing.replicas] == [0, 0]
    lease = await pool.lease(demand_of(text=LONG))
    assert (lease.replica in (stays, fresh), lease.reason) == (True, "uncached")
    # The newcomer does not make up for what it has not served.
    end(lease)
    names = [(await asked(pool, f"{number} {OTHER}")).replica.name for number in range(8)]
    assert names.count(stays.name) == pytest.approx(4, abs=1)


@in_virtual_time
async def test_the_heavier_of_two_gets_more_of_what_is_in_no_cache() -> None:
    light, heavy = replica_of(6, "light"), replica_of(6, "heavy", weight=2.0)
    pool = pool_of(light, heavy)
    leases = [await pool.lease(demand_of(text=f"{number} {LONG}")) for number in range(6)]
    assert [lease.replica.name for lease in leases].count("heavy") == 4


@in_virtual_time
async def test_one_replica_costs_no_look_at_the_prompt() -> None:
    pool = pool_of(replica_of(1))
    # What is no chat could not be looked at.
    demand = Demand(Call(Endpoint.CHAT, "m", {"messages": 5}), ANONYMOUS, 80)
    lease = await pool.lease(demand)
    waiter = await leasing(pool, demand)
    end(lease, Usage(100, 0, 1))
    with await waiter:
        assert lease.foreseen_tokens is None
    assert pool.routing.decisions == {}


@in_virtual_time
async def test_embeddings_go_where_least_is_to_do() -> None:
    first, second = pair()
    pool = pool_of(first, second)
    with await pool.lease(demand_of()) as lease:
        demand = Demand(Call(Endpoint.EMBEDDINGS, "m", {"input": LONG}), ANONYMOUS, len(LONG))
        with await pool.lease(demand) as other:
            assert other.replica is not lease.replica
            assert (other.reason, other.foreseen_tokens) == ("least_busy", None)


@in_virtual_time
async def test_a_prompt_of_less_than_a_block_is_not_hashed() -> None:
    pool = pool_of(*pair())
    # What is no chat could not be.
    lease = await pool.lease(Demand(Call(Endpoint.CHAT, "m", {"messages": 5}), ANONYMOUS, 80))
    end(lease, Usage(100, 50, 1))
    assert (lease.reason, lease.foreseen_tokens) == ("uncached", 0)


# Waiting for a better replica.


async def occupied(pool: Pool) -> tuple[Lease, Replica]:
    """The replica that knows the long story is full; a second is what a lease takes, and ten to read it anew."""
    for _ in range(3):
        lease = await pool.lease(demand_of(text=LONG))
        await advance(1)
        end(lease, Usage(1000, 0, 1), prefill_s=10)
    lease = await pool.lease(demand_of(text=LONG))
    return lease, lease.replica


@in_virtual_time
async def test_a_busy_replica_is_waited_for_where_reading_the_prompt_elsewhere_takes_longer() -> None:
    pool = pool_of(*pair(slots=1))
    lease, home = await occupied(pool)
    waiter = await leasing(pool, demand_of(text=LONG))
    assert (waiter.done(), pool.routing.decisions["held"]) == (False, 1)
    # Somebody else takes the slot that it does not want.
    other = await leasing(pool, demand_of(text=OTHER))
    with await other as taken:
        assert taken.replica is not home
        end(lease)
        assert (await waiter).replica is home


@in_virtual_time
async def test_it_is_waited_for_a_bounded_time() -> None:
    pool = pool_of(*pair(slots=1))
    lease, home = await occupied(pool)
    waiter = await leasing(pool, demand_of(text=LONG))
    await advance(HOLD_LIMIT_S - 0.1)
    assert not waiter.done()
    await advance(0.2)
    with await waiter as late:
        assert late.replica is not home
    end(lease)


@in_virtual_time
async def test_a_queue_that_is_full_makes_nobody_wait_for_a_cache() -> None:
    pool = pool_of(*pair(slots=1), length=0)
    lease, home = await occupied(pool)
    with await pool.lease(demand_of(text=LONG)) as other:
        assert other.replica is not home
    end(lease)


@in_virtual_time
async def test_nobody_waits_for_a_cache_where_the_queue_is_full() -> None:
    home, other = (replica_of(1, name, context=600) for name in ("home", "other"))
    large = replica_of(1, "large", context=6000)
    pool = pool_of(home, other, large, length=1)
    for _ in range(3):
        lease = await pool.lease(demand_of(text=LONG), avoid=[other, large])
        await advance(1)
        end(lease, Usage(1000, 0, 1), prefill_s=10)
    busy = [await pool.lease(demand_of(text=LONG)), await pool.lease(demand_of(text="word " * 2000))]
    waiter = await leasing(pool, demand_of(text="word " * 2000))
    assert ([each.replica for each in busy], pool.waiting) == ([home, large], 1)
    with await pool.lease(demand_of(text=LONG)) as lease:
        assert lease.replica is other
    for lease in busy:
        end(lease)
    end(await waiter)


# Sizes.


@in_virtual_time
async def test_a_prompt_is_not_sent_where_it_does_not_fit() -> None:
    small, large = replica_of(4, "small", context=200), replica_of(1, "large", context=2000)
    pool = pool_of(small, large)
    lease = await pool.lease(demand_of(text="word " * 500))
    assert lease.replica is large
    waiter = await leasing(pool, demand_of(text="word " * 500))
    assert not waiter.done()
    # It keeps nobody from the other.
    with await pool.lease(demand_of()) as short:
        assert short.replica is small
    end(lease)
    with await waiter as next_one:
        assert next_one.replica is large


@in_virtual_time
async def test_a_prompt_that_may_be_too_long_is_tried_where_there_is_most_room() -> None:
    small, large = replica_of(1, "small", context=200), replica_of(1, "large", context=400)
    with await pool_of(small, large).lease(demand_of(text="word " * 700)) as lease:
        assert lease.replica is large


@in_virtual_time
async def test_more_tasks_than_slots_where_the_prompt_fits_are_refused() -> None:
    pool = pool_of(replica_of(4, "small", context=100), replica_of(1, "large", context=2000))
    with pytest.raises(InvalidRequest, match=r"2 tasks at once .* has 1 slots"):
        await pool.lease(demand_of(2, text="word " * 2000))


@pytest.mark.parametrize("count", [1, 2])
@in_virtual_time
async def test_a_prompt_that_fits_nowhere_is_refused_before_any_wait(count: int) -> None:
    pool = pool_of(*(replica_of(1, f"r{number}", context=100 * (number + 1)) for number in range(count)))
    leases = [await pool.lease(demand_of()) for _ in range(count)]
    with pytest.raises(ContextLengthExceeded, match=f"maximum context length is {count}00 tokens") as caught:
        await pool.lease(demand_of(text="word " * 2000))
    assert (caught.value.param, pool.waiting) == ("messages", 0)
    for lease in leases:
        end(lease)


@in_virtual_time
async def test_a_replica_that_has_not_told_its_context_may_be_large_enough() -> None:
    known, untold = replica_of(1, "known", context=100), replica_of(1, "untold")
    with await pool_of(known, untold).lease(demand_of(text="word " * 2000)) as lease:
        assert lease.replica is untold


# Other ways to choose.


@in_virtual_time
async def test_round_robin_goes_by_weight_and_makes_up_for_nothing() -> None:
    light, heavy = replica_of(1, "light"), replica_of(1, "heavy", weight=2.0)
    pool = pool_of(light, heavy, balance=Balance.ROUND_ROBIN)

    async def taken(count: int) -> list[str]:
        names = []
        for _ in range(count):
            with await pool.lease(demand_of()) as lease:
                names.append(lease.replica.name)
        return names

    assert sorted(await taken(6)) == ["heavy"] * 4 + ["light"] * 2
    light.become(State.UNREACHABLE, "x")
    await taken(30)
    light.become(State.READY, "x")
    assert (await taken(9)).count("light") in (3, 4)


@in_virtual_time
async def test_sticky_keeps_clients_together_and_goes_on_where_one_is_away() -> None:
    replicas = [replica_of(4, f"r{number}") for number in range(4)]
    pool = pool_of(*replicas, balance=Balance.STICKY)
    homes: dict[Principal, Replica] = {}
    for number in range(20):
        client = Principal(f"client-{number}")
        for _ in range(3):
            with await pool.lease(demand_of(1, client)) as lease:
                assert homes.setdefault(client, lease.replica) is lease.replica
                assert lease.reason == "sticky"
    assert len(set(homes.values())) > 1
    client, home = homes.popitem()
    home.become(State.UNREACHABLE, "x")
    with await pool.lease(demand_of(1, client)) as lease:
        assert lease.replica is not home
    with await pool.lease(demand_of(1, client, prompt_cache_key="talk")) as lease:
        talk = lease.replica
    for other in homes:
        with await pool.lease(demand_of(1, other, prompt_cache_key="talk")) as lease:
            assert lease.replica is talk


@in_virtual_time
async def test_all_that_have_been_tried_are_avoided_as_long_as_there_is_another() -> None:
    first, second, third = (replica_of(1, f"r{number}") for number in range(3))
    pool = pool_of(first, second, third)
    with await pool.lease(demand_of(), avoid={first, second}) as lease:
        assert lease.replica is third
        with await pool.lease(demand_of(), avoid={first, second, third}) as better_than_none:
            assert better_than_none.replica is not third
