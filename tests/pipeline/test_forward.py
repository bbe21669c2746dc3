"""A call is tried, tried again, and cut into parts; what it took is noted."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from corral.config import RequestSettings, RetrySettings, RouteTimeouts, TimeoutSettings
from corral.core.breaker import FAILURES
from corral.core.call import Call, Endpoint
from corral.core.errors import (
    ConnectionLost,
    CorralError,
    InvalidRequest,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from corral.core.fairness import Account, cost_of
from corral.core.lifecycle import State
from corral.core.principal import ANONYMOUS
from corral.core.record import Record
from corral.core.usage import Usage
from corral.pipeline.asgi import AsgiAnswer
from corral.pipeline.attempt import Attempts
from corral.pipeline.forward import Forwarder
from corral.pipeline.time_limits import TimeLimits
from corral.upstream.address import Address
from corral.upstream.pool import Pool
from corral.upstream.probe import Prober
from corral.upstream.replica import Clocks, Replica
from support.asgi_client import AsgiClient
from support.exchanges import LONG_S, opened
from support.fake import FakeLlama
from support.loops import on_both_loops
from support.pools import demand_of, pool_of, replica_of, settle
from support.told_llama import until


@pytest.fixture(scope="module")
def process() -> Iterator[FakeLlama]:
    with FakeLlama(slots=2) as running:
        yield running


@pytest.fixture
def fake(process: FakeLlama) -> FakeLlama:
    process.reset()
    return process


@dataclass
class Bench:
    """A forwarder and a watched pool in front of a fake, with a clock that stands still."""

    forwarder: Forwarder
    pool: Pool
    replica: Replica
    client: AsgiClient
    retries: list[str]
    now: list[float] = field(default_factory=lambda: [0.0])

    async def forward(self, call: Call, record: Record | None = None) -> tuple[Record, CorralError | None]:
        """The record, a new one if none is given, and the error that the call ended in."""
        record = record or Record("req_1", call.endpoint, opened_at=0.0, opened_unix_s=0.0)
        async with AsgiAnswer(self.client.receive, self.client.send, stall_s=LONG_S) as answer:
            try:
                await self.forwarder.forward(call, ANONYMOUS, self.pool, answer, record)
            except CorralError as error:
                return record, error
        return record, None

    def reply(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.client.content())
        return told


@asynccontextmanager
async def bench(
    fake: FakeLlama, *, whole_max_tokens: int = 0, first_byte_s: float = LONG_S, wait: bool = True
) -> AsyncIterator[Bench]:
    now, retries, changed = [0.0], [], asyncio.Event()
    async with opened() as client, asyncio.TaskGroup() as tasks:
        clocks = Clocks(time.monotonic, time.time)
        replica = Replica("m/0", "m", Prober(client), clocks, address=Address("127.0.0.1", fake.port))
        replica.on_change = changed.set
        watching = tasks.create_task(replica.watch())
        if wait:
            await until(lambda: replica.state is State.READY, changed)
        timeouts = TimeoutSettings(chat=RouteTimeouts(first_byte_s=first_byte_s))
        attempts = Attempts(
            client, TimeLimits(timeouts), RequestSettings(whole_max_tokens=whole_max_tokens), lambda: now[0]
        )
        forwarder = Forwarder(
            attempts, RetrySettings(backoff_s=0.0), lambda: 0.0, lambda model, code: retries.append(f"{model} {code}")
        )
        made = Bench(forwarder, pool_of(replica), replica, AsgiClient(), retries, now)
        yield made
        # Nothing leaked, whatever the test did; slots of those who were cut off linger for a moment.
        made.replica.on_change = changed.set
        await until(lambda: replica.busy == 0, changed)
        assert made.pool.waiting == 0
        watching.cancel()


def chat(text: str = "hi", **more: Any) -> Call:
    fields = {"messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return Call(Endpoint.CHAT, "", fields | more, max_tokens=8, stream=bool(more.get("stream")))


def prompts(*texts: str) -> Call:
    scripts = [f"script:{json.dumps({'text': text})}" for text in texts]
    return Call(Endpoint.COMPLETIONS, "", {"prompt": scripts, "max_tokens": 8}, max_tokens=8, inputs=len(texts))


# What is sent.


@on_both_loops
async def test_llama_server_is_asked_for_a_stream_with_usage_and_progress_and_without_comments(
    fake: FakeLlama,
) -> None:
    async with bench(fake) as made:
        _, error = await made.forward(chat())
    assert error is None
    (asked,) = fake.requests("/v1/chat/completions")
    assert asked["body"] == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "sse_ping_interval": -1,
    }
    assert asked["headers"]["x-request-id"] == "req_1"


# Retries.


@on_both_loops
async def test_what_fails_in_passing_is_tried_again(fake: FakeLlama) -> None:
    fake.fault("status", status=503, times=2)
    async with bench(fake) as made:
        record, error = await made.forward(chat())
        assert error is None
        assert made.reply()["choices"][0]["message"]["content"]
    assert record.attempts == 3
    assert made.retries == ["m upstream_failed"] * 2


@on_both_loops
async def test_the_time_in_the_queue_does_not_use_up_the_time_for_retries(fake: FakeLlama) -> None:
    fake.fault("status", status=503, times=1)
    async with bench(fake) as made:
        with await made.pool.lease(demand_of(2)):
            forwarding = asyncio.create_task(made.forward(chat()))
            await settle()
            made.now[0] = 10 * RetrySettings().deadline_s
        record, error = await forwarding
    assert error is None
    assert record.attempts == 2


@on_both_loops
async def test_a_short_reply_that_does_not_come_is_given_up_with_the_limit_for_the_first_byte(fake: FakeLlama) -> None:
    fake.fault("silence")
    async with bench(fake, whole_max_tokens=16, first_byte_s=0.1) as made:
        _, error = await made.forward(chat())
    assert isinstance(error, UpstreamTimeout)
    assert error.phase == "first_byte"


@on_both_loops
async def test_tools_are_refused_once_the_server_has_told_that_its_template_knows_none(fake: FakeLlama) -> None:
    async with bench(fake, wait=False) as made:
        _, error = await made.forward(replace(chat(), tools=True))
    assert isinstance(error, InvalidRequest)
    assert error.param == "tools"
    assert fake.requests("/v1/chat/completions") == []


# What is told of an attempt when it has ended.


def served(pool: Pool) -> float:
    """What the client has been charged so far."""
    account: Account[object] = pool._queue.account(ANONYMOUS)  # type: ignore[assignment]  # of whom is all the same
    return account.served


@pytest.mark.parametrize("whole_max_tokens", [0, 16])
@on_both_loops
async def test_a_client_is_charged_what_its_call_took(fake: FakeLlama, whole_max_tokens: int) -> None:
    async with bench(fake, whole_max_tokens=whole_max_tokens) as made:
        record, error = await made.forward(chat())
        assert error is None
        assert served(made.pool) == cost_of(record.usage) > 0
        before = served(made.pool)
        streamed, error = await made.forward(chat(stream=True))
        assert error is None
        assert served(made.pool) == before + cost_of(streamed.usage) > before


@on_both_loops
async def test_a_client_that_leaves_is_charged_what_it_got(fake: FakeLlama) -> None:
    fake.set(token_s=0.01)
    async with bench(fake) as made:
        record = Record("req_1", Endpoint.CHAT, opened_at=0.0, opened_unix_s=0.0)
        forwarding = asyncio.create_task(made.forward(chat(max_tokens=1000), record))
        await asyncio.to_thread(fake.until, lambda _: record.token_events >= 3)
        forwarding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forwarding
        assert served(made.pool) == cost_of(record.usage) >= 2 * 3
        assert made.replica.breaker.closed


@on_both_loops
async def test_a_call_that_was_refused_costs_nothing_and_says_nothing_against_the_replica(fake: FakeLlama) -> None:
    fake.fault("status", status=400)
    async with bench(fake) as made:
        for _ in range(2 * FAILURES):
            _, error = await made.forward(chat())
            assert isinstance(error, UpstreamRefused)
        assert served(made.pool) == 0.0
        assert made.replica.breaker.closed


@on_both_loops
async def test_what_an_earlier_attempt_took_is_charged_once(fake: FakeLlama) -> None:
    fake.fault("truncate", after=3, times=1)
    fake.fault("status", status=500, skip=1)
    async with bench(fake) as made:
        record, error = await made.forward(chat())
        assert isinstance(error, UpstreamFailed)
        # The second was to go on with the answer, and came to nothing.
        assert (record.attempts, record.usage.completion_tokens) == (2, 1)
        # Its prompt of a few tokens, and at most three of output.
        assert 0 < served(made.pool) < 40


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["no_done", "truncate"])
@on_both_loops
async def test_an_answer_that_was_gone_on_with_is_charged_as_often_as_it_was_made(
    fake: FakeLlama, kind: str, stream: bool
) -> None:
    fake.fault(kind, after=6, times=1)
    async with bench(fake) as made:
        record, error = await made.forward(chat(stream=stream))
        assert error is None
        assert (record.attempts, len(record.resumed)) == (2, 1)
        assert (record.usage.completion_tokens, record.usage.estimated) == (8, False)
        # Its eight tokens once; its prompt, and for the second time what was said, for each server that has read it.
        once = cost_of(record.usage)
        assert served(made.pool) == once if kind == "no_done" else once < served(made.pool) < 2 * once + 20


@on_both_loops
async def test_tokens_that_could_be_counted_later_are_no_estimate(fake: FakeLlama) -> None:
    fake.fault("truncate", after=5, times=2)
    fake.fault("status", path="/tokenize", status=500, times=1)
    async with bench(fake) as made:
        record, error = await made.forward(chat())
    assert error is None
    assert (len(record.resumed), record.usage.completion_tokens, record.usage.estimated) == (2, 8, False)


@pytest.mark.parametrize("stream", [True, False])
@on_both_loops
async def test_an_answer_went_on_when_an_attempt_has_added_to_it(fake: FakeLlama, stream: bool) -> None:
    fake.fault("truncate", after=5, times=1)
    fake.fault("status", status=503, skip=1, times=1)
    fake.fault("error_event", after=6, skip=2, times=1)
    async with bench(fake) as made:
        record, error = await made.forward(chat(stream=stream))
    assert error is None
    assert (record.attempts, record.usage.completion_tokens) == (4, 8)
    assert record.resumed == ("upstream_connection_lost", "upstream_failed")


@on_both_loops
async def test_an_answer_whose_rest_is_refused_has_not_gone_on(fake: FakeLlama) -> None:
    fake.fault("truncate", after=5, times=1)
    fake.fault("status", status=400, skip=1)
    async with bench(fake) as made:
        record, error = await made.forward(chat(stream=True))
    assert isinstance(error, ConnectionLost)
    assert (record.attempts, record.resumed) == (2, ())


@on_both_loops
async def test_an_answer_that_nobody_has_seen_begins_anew_when_its_rest_is_refused(fake: FakeLlama) -> None:
    fake.fault("truncate", after=5, times=1)
    fake.fault("status", status=400, times=1, skip=1)
    async with bench(fake) as made:
        record, error = await made.forward(chat())
        assert error is None
        broken = made.reply()["choices"]
        made.client = AsgiClient()
        await made.forward(chat())
        assert broken == made.reply()["choices"]
    assert record.resumed == ()
    assert (record.attempts, record.usage.completion_tokens, record.usage.estimated) == (3, 8, False)


@on_both_loops
async def test_an_answer_whose_rest_is_always_refused_is_given_up(fake: FakeLlama) -> None:
    for turn in range(20):
        fake.fault("truncate", after=5, times=1, skip=2 * turn)
        fake.fault("status", status=400, times=1, skip=2 * turn + 1)
    async with bench(fake) as made:
        record, error = await made.forward(chat())
    assert isinstance(error, ConnectionLost)
    assert record.attempts <= 2 * RetrySettings().attempts


@on_both_loops
async def test_failures_of_the_replicas_own_making_open_its_breaker(fake: FakeLlama) -> None:
    fake.fault("status", status=500)
    async with bench(fake) as made:
        for _ in range(FAILURES):
            assert made.replica.breaker.closed
            _, error = await made.forward(chat())
            assert isinstance(error, UpstreamFailed)
        assert not made.replica.breaker.closed
        fake.clear_faults()
        # There is no other: it is asked all the same, and trusted when that succeeds.
        _, error = await made.forward(chat())
        assert error is None
        assert made.replica.breaker.closed


# Parts.


@on_both_loops
async def test_a_call_that_comes_before_the_server_is_ready_is_cut_by_its_slots(fake: FakeLlama) -> None:
    async with bench(fake, wait=False) as made:
        _, error = await made.forward(prompts("one", "two"))
    assert error is None
    assert len(fake.requests("/v1/completions")) == 1


@on_both_loops
async def test_the_parts_of_a_call_become_one_reply_in_the_order_of_its_inputs(fake: FakeLlama) -> None:
    async with bench(fake) as made:
        record, error = await made.forward(prompts("one", "two", "three", "four", "five"))
        assert error is None
        texts = [(choice["index"], choice["text"]) for choice in made.reply()["choices"]]
    assert texts == list(enumerate(["one", "two", "three", "four", "five"]))
    assert len(fake.requests("/v1/completions")) == 5
    assert record.usage.completion_tokens == made.reply()["usage"]["completion_tokens"] == 5
    # Five parts are not four retries.
    assert (record.attempts, record.replica) == (1, "m/0")


@on_both_loops
async def test_what_a_part_needs_more_is_what_the_call_needed(fake: FakeLlama) -> None:
    fake.fault("status", status=503, times=1, skip=2)
    async with bench(fake) as made:
        record, error = await made.forward(prompts("one", "two", "three", "four"))
    assert error is None
    assert record.attempts == 2


@on_both_loops
async def test_what_went_on_of_a_part_went_on_of_the_call(fake: FakeLlama) -> None:
    fake.fault("truncate", after=3, times=1)
    async with bench(fake) as made:
        record, error = await made.forward(prompts("one two three", "four five six", "seven"))
        assert error is None
        assert [choice["text"] for choice in made.reply()["choices"]] == ["one two three", "four five six", "seven"]
    assert record.resumed == ("upstream_connection_lost",)


@on_both_loops
async def test_a_call_whose_last_part_fails_keeps_what_the_others_have_noted(fake: FakeLlama) -> None:
    fake.fault("status", status=500, skip=4)
    async with bench(fake) as made:
        record, error = await made.forward(prompts("one", "two", "three", "four", "five"))
    assert isinstance(error, UpstreamFailed)
    assert record.leased_at is not None
    assert record.first_byte_at is not None
    # The fourth runs beside the last, and is called off with it if it has not ended by then.
    assert record.usage.completion_tokens in (3, 4)


@on_both_loops
async def test_a_part_that_is_refused_calls_off_the_others(fake: FakeLlama) -> None:
    fake.fault("status", status=400, times=1)
    fake.set(token_s=0.01)
    async with bench(fake) as made:
        _, error = await made.forward(prompts(*["a " * 200] * 6))
    assert isinstance(error, UpstreamRefused)
    assert len(fake.requests("/v1/completions")) <= 2


@on_both_loops
async def test_a_call_that_is_cancelled_calls_off_its_parts(fake: FakeLlama) -> None:
    fake.set(token_s=0.01)
    async with bench(fake) as made:
        forwarding = asyncio.create_task(made.forward(prompts(*["a " * 200] * 6)))
        await asyncio.to_thread(fake.until, lambda state: state["processing"] == 2)
        forwarding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forwarding


@on_both_loops
async def test_a_call_of_embeddings_is_cut_into_parts_too(fake: FakeLlama) -> None:
    texts = [f"text {number}" for number in range(7)]
    call = Call(Endpoint.EMBEDDINGS, "", {"input": texts}, inputs=7)
    async with bench(fake) as made:
        record, error = await made.forward(call)
        assert error is None
        reply = made.reply()
    assert [each["index"] for each in reply["data"]] == list(range(7))
    assert len({tuple(each["embedding"]) for each in reply["data"]}) == 7
    assert record.usage == Usage(prompt_tokens=reply["usage"]["prompt_tokens"])


@on_both_loops
async def test_a_call_that_falls_back_was_queued_when_it_came(fake: FakeLlama) -> None:
    async with bench(fake) as made:
        replica = replica_of(1, "gone/0")
        gone, fallback = pool_of(replica), made.pool

        def fall_back(_: Pool) -> Pool:
            made.now[0] = 7.0
            return fallback

        # It is thought to be ready, and has no address.
        made.forwarder = replace(made.forwarder, retries=RetrySettings(attempts=1), fallback=fall_back)
        made.pool = gone
        record, error = await made.forward(chat())
        assert (error, record.replica, record.attempts, made.now[0]) == (None, "m/0", 2, 7.0)
        assert record.queue_wait_s == 0.0
        made.pool = fallback
