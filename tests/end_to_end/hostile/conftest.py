"""A ``corral serve`` with short limits, for clients that mean no good; it is as well after each of them as before."""

from collections.abc import Iterator

import pytest

from support.door import Door
from support.edge import Edge
from support.fake import FakeLlama
from support.gateway import Gateway
from support.leftovers import Leftovers, open_files

pytest.register_assert_rewrite("support.spelled")

LIMITS = {
    "CORRAL_LIMITS_REQUESTS": "0",
    "CORRAL_SERVER_HEAD_TIMEOUT": "1s",
    "CORRAL_SERVER_BODY_TIMEOUT": "1s",
    "CORRAL_SERVER_BODY_SIZE": "1MiB",
    "CORRAL_SERVER_KEEP_ALIVE": "1s",
    "CORRAL_SERVER_CLIENT_STALL": "1s",
    "CORRAL_TIMEOUTS_CHAT_BETWEEN_TOKENS": "1s",
}


@pytest.fixture(scope="session")
def whole_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with FakeLlama(slots=2) as fake:
        settings = LIMITS | {"MODEL_UPSTREAMS": f"one={fake.url}"}
        with Gateway(tmp_path_factory.mktemp("edge"), door=Door.LANE, check_idle=True, **settings) as gateway:
            gateway.until_ready()
            assert open_files(gateway.process.pid)
            edge = Edge(gateway, fake, Leftovers(gateway, [fake]))
            yield edge
            edge.leftovers.ensure_none()


@pytest.fixture
def edge(whole_edge: Edge) -> Iterator[Edge]:
    yield whole_edge
    whole_edge.settle()
