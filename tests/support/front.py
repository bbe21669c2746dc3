"""A gateway with the fakes behind it, as the end-to-end tests share them."""

from dataclasses import dataclass
from pathlib import Path

from support.fake import FakeLlama
from support.gateway import Gateway


@dataclass(frozen=True)
class Front:
    """The gateway and what is behind it: model ``one`` by one fake, ``two`` by two, ``away`` by nobody."""

    gateway: Gateway
    one: FakeLlama
    left: FakeLlama
    right: FakeLlama

    @property
    def fakes(self) -> tuple[FakeLlama, ...]:
        return (self.one, self.left, self.right)

    def mend(self) -> None:
        """Let the fakes be as freshly started, and wait until the gateway has noticed."""
        for fake in self.fakes:
            fake.reset()
        ready = len(self.fakes)
        self.gateway.until(lambda: self.gateway.metric("corral_replica_state", state="ready") == ready, "all ready")


def write_settings(directory: Path, content: str) -> Path:
    """A settings file."""
    file = directory / "corral.yaml"
    file.write_text(content)
    return file
