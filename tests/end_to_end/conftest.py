"""A gateway in front of three fakes, shared by the tests that make trouble; each test leaves it as it was."""

from collections.abc import Iterator

import pytest

from support.fake import FakeLlama
from support.front import Front, write_settings
from support.gateway import Gateway

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


@pytest.fixture(scope="session")
def whole_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    with FakeLlama() as one, FakeLlama() as left, FakeLlama() as right:
        settings = write_settings(directory, MODELS.format(one=one, left=left, right=right, nobody=NOBODY))
        with Gateway(directory, "--config", str(settings), check_idle=True, **SETTINGS) as gateway:
            front = Front(gateway, one, left, right)
            front.mend()
            open_files = gateway.metric("process_open_fds")
            yield front
            # Idle connections to the upstreams close by themselves after a while, but for the one that asks each how
            # it is.
            most = open_files + len(front.fakes)
            gateway.until(lambda: gateway.metric("process_open_fds") <= most, f"down to {most} open files")


@pytest.fixture
def front(whole_front: Front) -> Iterator[Front]:
    """The shared gateway; after the test nothing is busy, and every exchange has left its one record."""
    yield whole_front
    whole_front.gateway.until_idle()
    whole_front.mend()


@pytest.fixture
def gateway(front: Front) -> Gateway:
    """The shared gateway, for tests that need nothing else of it."""
    return front.gateway


@pytest.fixture
def fake(front: Front) -> FakeLlama:
    """The fake behind model ``one``."""
    return front.one
