"""A gateway with short limits, as the tests of clients that mean no good share it."""

from dataclasses import dataclass

from support.fake import FakeLlama
from support.gateway import Gateway
from support.leftovers import Leftovers
from support.talk import CHAT


@dataclass(frozen=True)
class Edge:
    """The gateway, and the fake behind its one model."""

    gateway: Gateway
    fake: FakeLlama
    leftovers: Leftovers

    @property
    def port(self) -> int:
        return self.gateway.port

    def ran(self) -> list[str]:
        """What was said in the chats that reached the model."""
        return [request["body"]["messages"][0]["content"] for request in self.fake.requests(CHAT)]

    def settle(self) -> None:
        """Nothing is busy, every exchange has left its record, and nothing of ours failed."""
        self.gateway.until_idle()
        self.fake.reset()
        self.gateway.until_ready()
        errors = [event for event in self.gateway.events() if event["level"] == "error"]
        assert errors == []
        assert "Traceback" not in self.gateway.output
