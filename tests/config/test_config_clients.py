"""Clients that the queue's settings name and nobody has a key of."""

from pathlib import Path

import pytest

from corral.config import (
    ApiKey,
    AuthSettings,
    Config,
    ModelSettings,
    QueueSettings,
    StoreSettings,
    key_digest,
    unknown_clients,
)


def config_of(*clients: str, allow_anonymous: bool = False, **queue: object) -> Config:
    keys = tuple(ApiKey(digest=key_digest(client), client=client) for client in clients)
    return Config(
        models=(ModelSettings(name="m", upstreams=("http://127.0.0.1:1",)),),
        auth=AuthSettings(keys=keys, allow_anonymous=allow_anonymous),
        queue=QueueSettings(**queue),  # type: ignore[arg-type]  # checked by Pydantic
    )


def test_each_is_told_with_its_setting_and_the_nearest_client_there_is() -> None:
    config = config_of(
        "frontend", "nightly", interactive=("fronted",), batch=("nightly", "zzz"), weights=(("nightli", 2.0),)
    )
    assert unknown_clients(config) == [
        "queue.interactive: no key has the client fronted; did you mean frontend?",
        "queue.batch: no key has the client zzz",
        "queue.weights: no key has the client nightli; did you mean nightly?",
    ]


@pytest.mark.parametrize(
    "config",
    [
        config_of("frontend", interactive=("frontend",), weights=(("frontend", 2.0),)),
        config_of(batch=("anonymous",)),
        config_of("frontend", allow_anonymous=True, batch=("anonymous",)),
    ],
)
def test_those_who_may_come_are_known(config: Config) -> None:
    assert unknown_clients(config) == []


def test_anonymous_is_nobody_where_a_key_is_needed() -> None:
    assert unknown_clients(config_of("frontend", batch=("anonymous",))) == [
        "queue.batch: no key has the client anonymous"
    ]


def test_keys_of_a_store_may_have_any_client(tmp_path: Path) -> None:
    file = tmp_path / "corral.db"
    file.touch()
    config = config_of("frontend", batch=("nightly",)).model_copy(update={"store": StoreSettings(file=file)})
    assert unknown_clients(config) == []
