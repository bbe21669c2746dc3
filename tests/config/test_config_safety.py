"""Nothing open, and no example key, on addresses that other machines reach."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from corral.config import Config

Refused = Callable[..., list[str]]
Configured = Callable[..., Config]

OPEN = {"CORRAL_SERVER_HOST": "0.0.0.0"}
OWN = "3f0c5a9e17d24b86"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
@pytest.mark.parametrize("keys", [{}, {"OPENAI_API_KEY": "local"}])
def test_on_loopback_no_key_and_example_keys_are_fine(
    configured: Configured, host: str, keys: Mapping[str, str]
) -> None:
    assert configured(env={"CORRAL_SERVER_HOST": host, **keys}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_off_loopback_a_key_is_needed(refused: Refused, configured: Configured, host: str) -> None:
    (problem,) = refused(yaml=f"server: {{host: '{host}'}}")
    assert problem.startswith(f"server.host (corral.yaml line 1): other machines can reach {host} and no key is set; ")
    assert "OPENAI_API_KEY" in problem
    assert configured(env={"CORRAL_SERVER_HOST": host, "OPENAI_API_KEY": OWN}).auth.keys


def test_anonymous_use_can_be_allowed_off_loopback(configured: Configured) -> None:
    assert configured("auth: {allow_anonymous: true}", env=OPEN).auth.keys == ()


@pytest.mark.parametrize("host_flag", [{"server.host": "0.0.0.0"}])
def test_a_flag_that_opens_the_listener_is_named(refused: Refused, host_flag: Mapping[str, object]) -> None:
    assert refused(flags=host_flag)[0].startswith("server.host (flag): other machines can reach 0.0.0.0")


@pytest.mark.parametrize(
    "key",
    ["local", "key_a", "key_b", "key_c", "test", "changeme", "secret", "sk-1234", "your-api-key", "api-key", "password",
     "LOCAL", "Changeme", "key_o"],
)  # fmt: skip
def test_example_keys_are_never_accepted_off_loopback(refused: Refused, here: Path, key: str) -> None:
    (here / "keys.txt").write_text(f"\n{key}:team\n")
    anonymous = {**OPEN, "CORRAL_AUTH_ALLOW_ANONYMOUS": "1"}
    for env, place in (
        ({"OPENAI_API_KEY": key}, "OPENAI_API_KEY (environment): the key"),
        ({"OPERATOR_API_KEY": key}, "OPERATOR_API_KEY (environment): the key"),
        ({"OPENAI_API_KEYS": f"{OWN}:b,{key}:a"}, "OPENAI_API_KEYS (environment): entry 2"),
        ({"OPENAI_API_KEYS_FILE": "keys.txt"}, "OPENAI_API_KEYS_FILE (environment): line 2"),
    ):
        (problem,) = refused(env={**anonymous, **env})
        assert problem.startswith(f"{place} is an example that everybody knows, and other machines can reach 0.0.0.0; ")
        assert f"'{key}'" not in problem


def test_a_malformed_key_is_not_also_a_missing_one(refused: Refused) -> None:
    (problem,) = refused(env={**OPEN, "OPENAI_API_KEY": "a b"})
    assert "holds a space" in problem
