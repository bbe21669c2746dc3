"""A gateway at one host, two replicas of its model at two others: links between them are cut and mended.

``test_hosts.py`` runs this file within namespaces, where all of it is one process with its children.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import PATIENCE_S, Gateway
from support.hosts import Host, ip, others_here
from support.raw_client import RawClient, Reply
from support.talk import CHAT, DONE, MODES, begin, chat, last_error, text_of

# Links are cut so that the system knows it, and so that nobody is told.
CUTS: dict[str, tuple[Callable[[Host], None], Callable[[Host], None]]] = {
    "down": (Host.take_down, Host.take_up),
    "silence": (Host.swallow, Host.deliver),
}
CLIENTS = 4
TOKENS = 30
# At 20 ms each they go on for seconds: long enough to be cut.
LONG_TOKENS = 300

SETTINGS = """\
models:
  - name: one
    upstreams: [{left.url}, {right.url}]
# Each host has its share of the requests at any time.
routing: {{balance: round_robin}}
limits: {{requests: 0}}
queue: {{unready_patience: 60s}}
server: {{comment_interval: 1s}}
# That a host has gone is to be noticed by other signs than these.
timeouts: {{chat: {{connect: 1s, first_byte: 50s, between_tokens: 50s}}}}
"""


@dataclass(frozen=True)
class Asked:
    """A request of the load and what became of it; ``late``: it began when the cut was known."""

    mode: str
    late: bool
    reply: Reply

    @property
    def complete(self) -> bool:
        """All of its tokens came, and nothing says otherwise."""
        if self.reply.status != 200 or len(text_of(self.reply).split()) != MODES[self.mode]["max_tokens"]:
            return False
        return self.mode != "stream" or self.reply.events[-1] == DONE


@dataclass
class Load:
    """Clients that ask one request after the other. The test writes ``late`` and ``over``, the clients the rest."""

    late: bool = False
    over: bool = False
    asked: list[Asked] = field(default_factory=list)
    _modes: Iterator[str] = field(default_factory=lambda: cycle(MODES))
    _numbers: Iterator[int] = field(default_factory=count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask_on(self, gateway: Gateway) -> None:
        """One of the clients, until it is over."""
        while not self.over:
            with self._lock:
                mode, number, late = next(self._modes), next(self._numbers), self.late
            prompt = f'request {number} script:{{"count": {MODES[mode]["max_tokens"]}}}'
            with begin(gateway, CHAT, chat(prompt, **MODES[mode])) as client:
                self.asked.append(Asked(mode, late, client.receive(PATIENCE_S)))


@dataclass(frozen=True)
class Apart:
    """The gateway, and the two hosts with a replica each: ``one/0`` at the left one, ``one/1`` at the right one."""

    gateway: Gateway
    left_host: Host
    right_host: Host
    left: FakeLlama
    right: FakeLlama

    def states(self) -> list[str]:
        """Of the replicas, as /health tells."""
        told = self.gateway.get("/health").json()["models"]["one"]
        return [replica["state"] for replica in told["replicas"]]

    def until(self, *states: str) -> None:
        self.gateway.until(lambda: self.states() == list(states), f"{states}")

    @contextmanager
    def load(self) -> Iterator[Load]:
        """Requests go on within the block; those that run when it is left come to their ends."""
        load = Load()
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients: list[Future[None]] = [pool.submit(load.ask_on, self.gateway) for _ in range(CLIENTS)]
            try:
                yield load
            finally:
                load.over = True
            for client in clients:
                client.result(PATIENCE_S)

    def served_more(self, fake: FakeLlama) -> Callable[[], bool]:
        """Whether a replica has got a request since now."""
        before = len(fake.requests(CHAT))
        return lambda: len(fake.requests(CHAT)) > before

    def stream_at(self, replica: str) -> "Stream":
        """A long stream that has begun at this replica."""
        while True:
            body = chat(f'script:{{"count": {LONG_TOKENS}}}', max_tokens=LONG_TOKENS, stream=True)
            client = begin(self.gateway, CHAT, body)
            begun = client.receive(until=b'"content"')
            if begun.headers["x-corral-replica"] == replica:
                return Stream(client, begun)
            client.close()


class Stream:
    """A stream that has begun; its client leaves with the ``with`` block."""

    def __init__(self, client: RawClient, begun: Reply) -> None:
        self._client = client
        self._begun = begun

    def whole(self) -> Reply:
        """All of it, when it has come to its end."""
        rest = self._client.receive(PATIENCE_S)
        return Reply([*self._begun.parts, *rest.parts], rest.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    """Three hosts; after the test nothing is busy or waiting, and no process is left."""
    ip("link", "set", "lo", "up")
    with Host("left", 1) as left_host, Host("right", 2) as right_host:
        places: list[dict[str, Any]] = [
            {"host": host.address, "within": host.within} for host in (left_host, right_host)
        ]
        with FakeLlama(token_s=0.02, **places[0]) as left, FakeLlama(token_s=0.02, **places[1]) as right:
            settings = write_settings(tmp_path, SETTINGS.format(left=left, right=right))
            with Gateway(tmp_path, CORRAL_CONFIG=str(settings)) as gateway:
                apart = Apart(gateway, left_host, right_host, left, right)
                apart.until("ready", "ready")
                yield apart
    assert others_here() == []


@pytest.mark.parametrize("cut", CUTS)
def test_requests_go_on_at_the_other_host_while_a_link_is_cut(apart: Apart, cut: str) -> None:
    sever, mend = CUTS[cut]
    with apart.load() as load, apart.stream_at("one/0") as cut_off, apart.stream_at("one/1") as untouched:
        apart.gateway.until(lambda: len(load.asked) > CLIENTS, "under load")
        sever(apart.left_host)
        apart.until("unreachable", "ready")
        load.late = True
        apart.gateway.until(lambda: sum(each.late for each in load.asked) > 2 * CLIENTS, "served by the other host")
        ensure_ended_honestly(cut_off.whole())
        assert untouched.whole().events[-1] == DONE
        assert apart.states() == ["unreachable", "ready"]
        mend(apart.left_host)
        apart.until("ready", "ready")
        apart.gateway.until(apart.served_more(apart.left), "served by the mended host")
    for each in load.asked:
        # A stream whose tokens its client has seen cannot always go on.
        if each.mode == "stream" and not each.late and not each.complete:
            ensure_ended_honestly(each.reply)
        else:
            assert each.complete, each


def ensure_ended_honestly(reply: Reply) -> None:
    """A stream came to its end, or says itself that it did not."""
    assert reply.end == "fin"
    if reply.events[-1] != DONE:
        assert last_error(reply)["code"] in ("upstream_connection_lost", "upstream_timeout")


@pytest.mark.parametrize("cut", CUTS)
def test_who_asks_while_no_host_can_be_reached_is_served_when_one_is_back(apart: Apart, cut: str) -> None:
    sever, mend = CUTS[cut]
    sever(apart.left_host)
    sever(apart.right_host)
    with begin(apart.gateway, CHAT, chat(max_tokens=TOKENS)) as client:
        apart.until("unreachable", "unreachable")
        assert apart.gateway.get("/health").status_code == 503
        apart.gateway.until(lambda: apart.gateway.metric("corral_queue_waiters") == 1, "waiting")
        mend(apart.right_host)
        reply = client.receive(PATIENCE_S)
    assert (reply.status, reply.headers["x-corral-replica"]) == (200, "one/1")
    apart.until("unreachable", "ready")
    mend(apart.left_host)
    apart.until("ready", "ready")
