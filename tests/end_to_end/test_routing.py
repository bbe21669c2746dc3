"""Several replicas of a model: the one that knows the prompt, never one that cannot take it; the answer says which."""

from collections.abc import Iterator

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import Front, Narrow, write_settings
from support.gateway import Gateway
from support.talk import CHAT, MODES, begin, chat, error_of, new_id, post, record_of

STORY = "Once upon a time there was a horse. " * 15

MODELS = """\
models:
  - name: three
    upstreams: [{fakes[0].url}, {fakes[1].url}, {fakes[2].url}]
"""


@pytest.fixture(scope="module")
def fakes() -> Iterator[list[FakeLlama]]:
    """The third has larger slots than the others."""
    with FakeLlama(n_ctx=256) as first, FakeLlama(n_ctx=256) as second, FakeLlama(n_ctx=512) as third:
        yield [first, second, third]


@pytest.fixture(scope="module")
def whole_three(fakes: list[FakeLlama], door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("three")
    settings = write_settings(directory, MODELS.format(fakes=fakes))
    with Gateway(directory, door=door, CORRAL_CONFIG=str(settings), CORRAL_RETRIES_BACKOFF="20ms") as gateway:
        yield gateway


@pytest.fixture
def three(whole_three: Gateway, fakes: list[FakeLlama]) -> Iterator[Gateway]:
    """A gateway in front of ``fakes``, which are as freshly started."""
    for fake in fakes:
        fake.reset()
    whole_three.until(lambda: whole_three.metric("corral_replica_state", state="ready") == 3, "all ready")
    yield whole_three
    for fake in fakes:
        fake.clear_faults()
    whole_three.until_idle()


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_says_which_replica_gave_it(front: Front, mode: str) -> None:
    request_id = new_id()
    reply = post(front.gateway, CHAT, chat(model="two", **MODES[mode]), **{"x-request-id": request_id})
    assert reply.headers["x-corral-attempts"] == "1"
    assert reply.headers["x-corral-queue-ms"].isdigit()
    record = record_of(front.gateway, request_id)
    assert record["replica"] == reply.headers["x-corral-replica"]
    assert record["replica"] in ("two/0", "two/1")
    assert record["route_reason"] in ("cached", "uncached")
    assert record["foreseen_tokens"] is not None


def test_what_waited_says_how_long(narrow: Narrow) -> None:
    with narrow.occupied():
        client = begin(narrow.gateway, CHAT, chat(max_tokens=8))
        narrow.until_waiting(1)
    reply = client.receive()
    client.close()
    assert (reply.status, reply.headers["x-corral-replica"]) == (200, "one/0")
    assert int(reply.headers["x-corral-queue-ms"]) > 0


def test_what_was_refused_before_a_slot_was_found_names_no_replica(front: Front) -> None:
    reply = post(front.gateway, CHAT, chat(model="two", n=1000))
    assert reply.status == 400
    assert not [name for name in reply.headers if name.startswith("x-corral")]


def test_a_conversation_stays_with_the_replica_that_has_read_it(three: Gateway) -> None:
    homes = set()
    for turn in range(6):
        request_id = new_id()
        body = chat(STORY + "And on it went. " * turn, model="three", max_tokens=8)
        reply = post(three, CHAT, body, **{"x-request-id": request_id})
        homes.add(reply.headers["x-corral-replica"])
        record = record_of(three, request_id)
        if turn:
            assert record["route_reason"] == "cached"
            # What was foreseen is there.
            assert 0 < record["foreseen_tokens"] <= record["cached_tokens"] + record["prompt_tokens"] // 4
    assert len(homes) == 1
    assert three.metric("corral_prefix_tokens_total", kind="foreseen") > 0


def test_one_after_the_other_is_tried_until_one_answers(three: Gateway, fakes: list[FakeLlama]) -> None:
    """Also when the two that fail answer their probes in between, and would be less busy."""
    bad, good = fakes[:2], fakes[2]
    for fake in bad:
        fake.fault("status", status=503, path=CHAT)
    for _ in range(4):
        reply = post(three, CHAT, chat(model="three", max_tokens=8))
        assert (reply.status, reply.headers["x-corral-replica"]) == (200, "three/2")
        assert int(reply.headers["x-corral-attempts"]) <= 3
    assert len(good.requests(CHAT)) == 4


def test_a_replica_whose_calls_fail_is_left_alone(three: Gateway, fakes: list[FakeLlama]) -> None:
    fakes[0].fault("garbage", path=CHAT)
    tries = 0
    while not three.metric("corral_replica_breaker_open", replica="three/0"):
        # Each prompt is a new one, so that all replicas get their turns.
        assert post(three, CHAT, chat(f"{tries} horses", model="three", max_tokens=8)).status == 200
        tries += 1
        assert tries < 50
    fakes[0].clear_faults()
    while three.metric("corral_replica_breaker_open", replica="three/0"):
        assert post(three, CHAT, chat(f"{tries} mares", model="three", max_tokens=8)).status == 200
        tries += 1
        assert tries < 5000


def test_a_long_prompt_goes_where_it_fits(three: Gateway, fakes: list[FakeLlama]) -> None:
    long = "horse " * 400
    for _ in range(3):
        reply = post(three, CHAT, chat(long, model="three", max_tokens=8))
        assert (reply.status, reply.headers["x-corral-replica"]) == (200, "three/2")
    assert [len(fake.requests(CHAT)) for fake in fakes] == [0, 0, 3]


def test_a_prompt_that_fits_nowhere_is_refused_without_asking_anyone(three: Gateway, fakes: list[FakeLlama]) -> None:
    reply = post(three, CHAT, chat("horse " * 3000, model="three", max_tokens=8))
    error = error_of(reply)
    assert (reply.status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "512 tokens" in error["message"]
    assert [len(fake.requests(CHAT)) for fake in fakes] == [0, 0, 0]
