"""Gateways in front of fakes, shared by the tests that make trouble, once for each door; each leaves them as before."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import Front, Narrow, Strict, write_settings
from support.gateway import Gateway
from support.leftovers import Leftovers
from support.tables import CELL, ROLE_CELL

pytest.register_assert_rewrite("support.matrix")

# Nobody listens on it: port 1 belongs to a service that no machine runs any more.
NOBODY = "http://127.0.0.1:1"

MODELS = """\
models:
  - name: one
    upstream: {one.url}
  - name: two
    upstreams: [{left.url}, {right.url}]
  - name: away
    upstream: {nobody}
"""

SETTINGS = {
    "OPENAI_API_KEYS": "key-of-ann:ann,key-of-bob:bob",
    "OPERATOR_API_KEY": "key-of-operator",
    "CORRAL_LIMITS_REQUESTS": "0",
    "CORRAL_QUEUE_UNREADY_PATIENCE": "2s",
    "CORRAL_RETRIES_ATTEMPTS": "3",
    "CORRAL_RETRIES_BACKOFF": "20ms",
    # Completions are in a hurry, chats are not: what is to exceed a limit is asked as a completion.
    "CORRAL_TIMEOUTS_CHAT_CONNECT": "1s",
    "CORRAL_TIMEOUTS_COMPLETIONS_FIRST_BYTE": "1s",
    "CORRAL_TIMEOUTS_COMPLETIONS_BETWEEN_TOKENS": "1s",
    "CORRAL_TIMEOUTS_COMPLETIONS_TOTAL": "3s",
}


@pytest.fixture(scope="session", params=Door, ids=lambda door: door.value)
def door(request: pytest.FixtureRequest) -> Door:
    """The door of the shared gateways; a test that uses one of them runs for each, unless it is ``lane_only``."""
    door: Door = request.param
    return door


@pytest.fixture(scope="session")
def whole_front(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    with FakeLlama() as one, FakeLlama() as left, FakeLlama() as right:
        settings = write_settings(directory, MODELS.format(one=one, left=left, right=right, nobody=NOBODY))
        with Gateway(directory, door=door, check_idle=True, CORRAL_CONFIG=str(settings), **SETTINGS) as gateway:
            front = Front(gateway, one, left, right, Leftovers(gateway, ()))
            front.mend()
            yield replace(front, leftovers=Leftovers(gateway, front.fakes))


@pytest.fixture
def front(whole_front: Front) -> Iterator[Front]:
    """The shared gateway; after the test nothing is busy or left, and every exchange has left its one record."""
    yield whole_front
    whole_front.settle()


@pytest.fixture
def gateway(front: Front) -> Gateway:
    """The shared gateway, for tests that need nothing else of it."""
    return front.gateway


@pytest.fixture
def fake(front: Front) -> FakeLlama:
    """The fake behind model ``one``."""
    return front.one


NARROW_SETTINGS = {
    "CORRAL_LIMITS_REQUESTS": "0",
    "CORRAL_QUEUE_LENGTH": "3",
    # Long enough for three to come in on a busy machine, one after the other.
    "CORRAL_QUEUE_PATIENCE": "5s",
    "CORRAL_SERVER_CLIENT_STALL": "1s",
    "CORRAL_SERVER_COMMENT_INTERVAL": "200ms",
}


@pytest.fixture(scope="session")
def whole_narrow(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    directory = tmp_path_factory.mktemp("narrow")
    with FakeLlama(slots=1) as fake:
        settings = NARROW_SETTINGS | {"MODEL_UPSTREAMS": f"one={fake.url}"}
        with Gateway(directory, door=door, check_idle=True, **settings) as gateway:
            gateway.until_ready()
            yield Narrow(gateway, fake, Leftovers(gateway, [fake]))


@pytest.fixture
def narrow(whole_narrow: Narrow) -> Iterator[Narrow]:
    """A gateway in front of a single slot; after the test nothing is busy or left, each exchange has left a record."""
    yield whole_narrow
    whole_narrow.settle()


# Two keys of one client, one key each for others, and one without a client's name.
STRICT_KEYS = ",".join(
    ["key-1:twice", "key-2:twice", *(f"key-of-{name}:{name}" for name in Strict.CLIENTS), "nameless"]
)
STRICT_SETTINGS = {
    "OPENAI_API_KEYS": STRICT_KEYS,
    "OPERATOR_API_KEY": "key-of-operator",
    "CORRAL_LIMITS_REQUESTS": str(Strict.LIMIT),
    "CORRAL_LIMITS_WINDOW": f"{Strict.WINDOW_S}s",
    "CORRAL_QUEUE_UNREADY_PATIENCE": "100ms",
    "CORRAL_SERVER_BODY_SIZE": f"{Strict.BODY_BYTES}B",
    "CORRAL_SERVER_BODY_TIMEOUT": "1s",
    "CORRAL_SERVER_CORS_ORIGINS": Strict.ORIGIN,
}


@pytest.fixture(scope="session")
def whole_strict(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    directory = tmp_path_factory.mktemp("strict")
    with FakeLlama() as fake:
        settings = STRICT_SETTINGS | {"MODEL_UPSTREAMS": f"one={fake.url},away={NOBODY}"}
        with Gateway(directory, door=door, check_idle=True, **settings) as gateway:
            gateway.until_ready()
            yield Strict(gateway, fake)


@pytest.fixture
def strict(whole_strict: Strict) -> Iterator[Strict]:
    """A gateway with keys, limits and origins; after the test nothing is busy, each exchange has left its record."""
    yield whole_strict
    whole_strict.gateway.until_idle()
    whole_strict.fake.reset()


@pytest.fixture
def cell(door: Door, record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Tells which row and mode of the fault matrix the test is about; it is printed when all tests have run."""
    return lambda row, mode: record_property(CELL, (row, mode, door.value))


@pytest.fixture
def role_cell(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Tells what a kind of key got from a route; it is printed when all tests have run."""
    return lambda route, kind, got: record_property(ROLE_CELL, (route, kind, got))
