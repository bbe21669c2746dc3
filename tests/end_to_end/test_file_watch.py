"""A running Corral that is told to watch its files: a change counts without anyone saying so, a wrong one does not."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.door import Door
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import Gateway
from support.talk import CHAT, begin, chat

KEY = "key-of-ann"
REFUSED = "settings not reloaded"
RELOADED = "settings reloaded"


class Watched:
    """A gateway that watches its settings, ``models`` of one fake, and its keys."""

    def __init__(self, gateway: Gateway, directory: Path, fake: FakeLlama) -> None:
        self.gateway = gateway
        self.directory = directory
        self._fake = fake

    def text(self, *names: str) -> str:
        return "models:\n" + "".join(f"  - {{name: {name}, upstream: {self._fake.url}}}\n" for name in names)

    def names(self, key: str = KEY) -> list[str] | None:
        """The models that this key's owner sees; None when it is no key."""
        listed = self.gateway.get("/v1/models", headers={"authorization": f"Bearer {key}"}).json()
        return [model["id"] for model in listed["data"]] if "data" in listed else None

    def until(self, *names: str) -> None:
        self.gateway.until(lambda: self.names() == list(names), f"serving {names}")

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.gateway.events() if each["event"] == event]

    def until_told(self, event: str, times: int) -> None:
        self.gateway.until(lambda: len(self.told(event)) >= times, f"{times} times told '{event}'")


@pytest.fixture(params=Door, ids=lambda door: door.value)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "keys.txt").write_text(f"{KEY}:ann\n")
    with FakeLlama(token_s=0.02) as fake:
        write_settings(tmp_path, f"models: [{{name: one, upstream: '{fake.url}'}}]\n")
        with Gateway(
            tmp_path,
            door=request.param,
            OPENAI_API_KEY="",
            OPENAI_API_KEYS_FILE="keys.txt",
            CORRAL_SERVER_WATCH="1",
        ) as gateway:
            gateway.until_ready()
            yield Watched(gateway, tmp_path, fake)


def test_a_file_that_is_saved_counts(watched: Watched) -> None:
    body = chat('script:{"count": 200}', max_tokens=200, stream=True)
    with begin(watched.gateway, CHAT, body, key=KEY) as client:
        client.receive(until=b'"content"')
        # Written over, and as editors do it: written beside, and renamed into its place.
        write_settings(watched.directory, watched.text("one", "two"))
        watched.until("one", "two")
        beside = watched.directory / "corral.yaml~"
        beside.write_text(watched.text("one", "three"))
        os.replace(beside, watched.directory / "corral.yaml")
        watched.until("one", "three")
        assert b"data: [DONE]\n\n" in client.receive(until=b"[DONE]\n\n").raw
    assert len(watched.told(RELOADED)) == 2
    assert watched.told(REFUSED) == []


def test_env_and_keys_count_too_when_they_are_there_at_last(watched: Watched) -> None:
    (watched.directory / ".env").write_text("CORRAL_LIMITS_REQUESTS=7\n")
    watched.until_told(RELOADED, 1)
    (watched.directory / "keys.txt").write_text(f"{KEY}:ann\nkey-of-bob:bob\n")
    watched.gateway.until(lambda: watched.names("key-of-bob") == ["one"], "letting bob in")


def test_a_wrong_file_changes_nothing_and_is_told_once(watched: Watched) -> None:
    write_settings(watched.directory, watched.text("two") + "queue: {lenght: 5}\nserver: {prot: 1}\n")
    watched.until_told(REFUSED, 1)
    assert watched.names() == ["one"]
    # It is looked at more than once until another has been read.
    write_settings(watched.directory, watched.text("three"))
    watched.until("three")
    (refused,) = watched.told(REFUSED)
    assert len(refused["problems"]) == 2
    assert "queue.lenght" in refused["problems"][0]


def test_a_file_that_has_gone_is_waited_for(watched: Watched) -> None:
    (watched.directory / "corral.yaml").unlink()
    # Whatever else has changed waits with it.
    (watched.directory / "keys.txt").write_text(f"{KEY}:ann\nkey-of-bob:bob\n")
    write_settings(watched.directory, watched.text("two"))
    watched.until("two")
    assert watched.names("key-of-bob") == ["two"]
    assert len(watched.told(RELOADED)) == 1
