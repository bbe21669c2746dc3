"""A gateway with the fakes behind it, as the end-to-end tests share them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from support.fake import FakeLlama
from support.gateway import Gateway
from support.leftovers import Leftovers
from support.raw_client import RawClient
from support.talk import CHAT, begin, chat, post


@dataclass(frozen=True)
class Front:
    """The gateway and what is behind it: model ``one`` by one fake, ``two`` by two, ``away`` by nobody."""

    gateway: Gateway
    one: FakeLlama
    left: FakeLlama
    right: FakeLlama
    leftovers: Leftovers

    @property
    def fakes(self) -> tuple[FakeLlama, ...]:
        return (self.one, self.left, self.right)

    def until_waiting(self, count: int) -> None:
        """Wait until so many requests are in the queue."""
        until_waiting(self.gateway, count)

    def mend(self) -> None:
        """Let the fakes be as freshly started, and wait until the gateway has noticed."""
        self._start_anew()
        if self.gateway.metric("corral_replica_breaker_open"):
            # Those whose calls failed again and again are trusted when one succeeds, which they may try after a second.
            self.gateway.until(self._trusts_all, "trusting all", pause_s=0.1)
            self._start_anew()

    def _start_anew(self) -> None:
        for fake in self.fakes:
            fake.reset()
        ready = len(self.fakes)
        self.gateway.until(lambda: self.gateway.metric("corral_replica_state", state="ready") == ready, "all ready")

    def _trusts_all(self) -> bool:
        for model in ("one", "two"):
            assert post(self.gateway, CHAT, chat(model=model, max_tokens=1)).status == 200
        return not self.gateway.metric("corral_replica_breaker_open")

    def settle(self) -> None:
        """Nothing is busy, every exchange has left its one record, and nothing is open that was not."""
        for fake in self.fakes:
            fake.clear_faults()
        try:
            self.gateway.until_idle()
        finally:
            self.mend()
        self.leftovers.ensure_none()


@dataclass(frozen=True)
class Narrow:
    """A gateway with one model, ``one``, which has a single slot, and a short queue."""

    gateway: Gateway
    fake: FakeLlama
    leftovers: Leftovers

    def settle(self) -> None:
        """Nothing is busy, every exchange has left its one record, and nothing is open that was not."""
        self.fake.clear_faults()
        try:
            self.gateway.until_idle()
        finally:
            self.fake.reset()
        self.gateway.until_ready()
        self.leftovers.ensure_none()

    @contextmanager
    def occupied(self) -> Iterator[RawClient]:
        """A stream that would go on for long holds the slot within the block; its client leaves with the block."""
        self.fake.set(token_s=0.02)
        body = chat('script:{"count": 100000}', max_tokens=100_000, stream=True)
        with begin(self.gateway, CHAT, body) as holder:
            holder.receive(until=b'"content"')
            yield holder

    def until_waiting(self, count: int) -> None:
        """Wait until so many requests are in the queue."""
        until_waiting(self.gateway, count)


@dataclass(frozen=True)
class Strict:
    """A gateway that asks for keys, limits requests and bodies, and answers to one origin. ``away`` serves nobody.

    Clients are there so that each test can use up a limit of its own; ``key_of`` gives their keys.
    """

    LIMIT: ClassVar[int] = 3
    WINDOW_S: ClassVar[int] = 5
    BODY_BYTES: ClassVar[int] = 65536
    ORIGIN: ClassVar[str] = "https://app.example.org"
    CLIENTS: ClassVar[tuple[str, ...]] = ("ann", "bob", "cleo", "dan", "eve", "finn", "gus", "hal", "ida")

    gateway: Gateway
    fake: FakeLlama

    @staticmethod
    def key_of(client: str) -> str:
        assert client in Strict.CLIENTS
        return f"key-of-{client}"


def until_waiting(gateway: Gateway, count: int) -> None:
    """Wait until so many requests are in the queues of a gateway."""
    gateway.until(lambda: gateway.metric("corral_queue_waiters") == count, f"{count} waiting")


def write_settings(directory: Path, content: str) -> Path:
    """A settings file."""
    file = directory / "corral.yaml"
    file.write_text(content)
    return file
