"""Precedence, files, everything wrong at once, secrets."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from corral.config import Config, load
from corral.core.call import Endpoint
from corral.core.errors import ConfigError

Refused = Callable[..., list[str]]
Configured = Callable[..., Config]

CANARY = "canary-5f2b9c"


def test_each_source_wins_over_the_weaker_ones(configured: Configured) -> None:
    sources: dict[str, object] = {}
    found = [configured().limits.requests]
    for name, source in (
        ("yaml", "limits: {requests: 1}"),
        ("dotenv", "CORRAL_LIMITS_REQUESTS=2"),
        ("env", {"CORRAL_LIMITS_REQUESTS": "3"}),
        ("flags", {"limits.requests": 4}),
    ):
        sources[name] = source
        found.append(configured(**sources).limits.requests)
    assert found == [600, 1, 2, 3, 4]


def test_sources_are_merged_setting_by_setting(configured: Configured) -> None:
    config = configured(
        yaml="timeouts: {chat: {connect: 1s, total: 1h}}",
        dotenv="CORRAL_TIMEOUTS_CHAT_CONNECT=2s",
        env={"CORRAL_TIMEOUTS_CHAT_FIRST_BYTE": "3s"},
        flags={"server.port": 0, "logs.level": None},
    )
    chat = config.timeouts.of(Endpoint.CHAT)
    assert (chat.connect_s, chat.total_s, chat.first_byte_s, chat.between_tokens_s) == (2, 3600, 3, 60)
    assert (config.server.port, config.logs.level) == (0, "info")


def test_the_processes_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_LIMITS_REQUESTS", "7")
    assert load().limits.requests == 7


def test_the_settings_file_can_be_named(here: Path) -> None:
    (here / "corral.yaml").write_text("limits: {requests: 1}")
    (here / "b.yaml").write_text("limits: {requests: 2}")
    (here / "c.yaml").write_text("limits: {requests: 3}")
    (here / "c.env").write_text("CORRAL_CONFIG=c.yaml")
    assert load(env={}).limits.requests == 1
    assert load(env={"CORRAL_CONFIG": "b.yaml"}).limits.requests == 2
    assert load(env={}, dotenv=here / "c.env").limits.requests == 3
    assert load(env={"CORRAL_CONFIG": "b.yaml"}, file=here / "c.yaml").limits.requests == 3


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ({"file": Path("x.yaml")}, "--config (flag): there is no file x.yaml"),
        ({"env": {"CORRAL_CONFIG": "x.yaml"}}, "CORRAL_CONFIG (environment): there is no file x.yaml"),
        ({"dotenv": Path("x.env")}, "--env-file (flag): there is no file x.env"),
        ({"file": Path()}, "--config (flag): . cannot be read (Is a directory)"),
    ],
)
def test_a_named_file_must_be_readable(sources: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{"env": {}, **sources})  # type: ignore[arg-type]  # The table mixes types.
    assert [line.split("; ")[0] for line in caught.value.problems] == [problem]


def test_a_file_that_is_not_text_is_refused(here: Path) -> None:
    (here / "corral.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(env={})


def test_an_unknown_flag_is_refused(refused: Refused) -> None:
    assert refused(flags={"server.prot": 1}) == [
        "server.prot (flag): there is no such setting; did you mean server.port?"
    ]


def test_a_value_of_the_wrong_kind_is_refused_without_quoting_it(refused: Refused) -> None:
    (problem,) = refused(flags={"llama.api_key": 51968})
    assert problem == "llama.api_key (flag): Input should be a valid string; write e.g. KEY"


def test_all_problems_are_told_at_once(refused: Refused) -> None:
    problems = refused(
        yaml="server: {port: 99999, host: 0.0.0.0}\nmodles: []\nretries: {attempts: 0}",
        dotenv="LLAMA_CTX=abc\nCORRAL_NOTHING=1",
        env={"MODEL_UPSTREAMS": "a=x,a=http://a,b", "OPENAI_API_KEYS": "k1x:a b,local", "LLAMA_SERVER_BIN": "nowhere"},
        flags={"queue.length": -1},
    )
    assert sorted(problem.split(" (")[0] for problem in problems) == [
        "CORRAL_NOTHING",
        "LLAMA_CTX",
        "LLAMA_SERVER_BIN",
        "MODEL_UPSTREAMS",
        "MODEL_UPSTREAMS",
        "MODEL_UPSTREAMS",
        "OPENAI_API_KEYS",
        "OPENAI_API_KEYS",
        "modles",
        "queue.length",
        "retries.attempts",
        "server.port",
    ]
    assert all("; " in problem for problem in problems)


def test_a_llama_server_must_be_an_executable(configured: Configured, refused: Refused, here: Path) -> None:
    (here / "text").write_text("x")
    assert configured(env={"LLAMA_SERVER_BIN": "sh"}).llama.server_bin == Path("sh")
    (problem,) = refused(env={"LLAMA_SERVER_BIN": "./text"})
    assert problem.startswith("LLAMA_SERVER_BIN (environment): there is no program text; ")


def test_a_config_cannot_be_changed(configured: Configured) -> None:
    config = configured()
    with pytest.raises(ValidationError):
        config.server.port = 1  # type: ignore[misc]  # That is the point.


def test_secrets_stand_in_no_repr_dump_or_copy_of_a_config(configured: Configured) -> None:
    keys = {"OPENAI_API_KEY": CANARY, "OPENAI_API_KEYS": f"{CANARY}1:a,{CANARY}2", "OPERATOR_API_KEY": f"{CANARY}3"}
    config = configured(env={**keys, "LLAMA_API_KEY": f"{CANARY}4"})
    assert len(config.auth.keys) == 4
    assert config.llama.api_key is not None
    assert config.llama.api_key.get_secret_value() == f"{CANARY}4"
    shown = f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
    assert CANARY not in shown
    assert all(key.digest.hex() not in shown and str(key.digest) not in shown for key in config.auth.keys)


@pytest.mark.parametrize(
    "env",
    [
        {"OPENAI_API_KEYS": f"{CANARY}:a b"},
        {"OPENAI_API_KEY": f"{CANARY} x"},
        {"OPERATOR_API_KEY": f"{CANARY}\n"  "x"},
        {"LLAMA_API_KEY": f"{CANARY} x"},
        {"CORRAL_LLAMA_API_KEY": f"{CANARY}é"},
        {"LLAMA_API_KEY": f"{CANARY}x", "CORRAL_LLAMA_API_KEY": f"{CANARY}y"},
        {"LLAMA_BASE_URL": f"http://u:{CANARY}@127.0.0.1"},
        {"LLAMA_BASE_URL": f"http://127.0.0.1?key={CANARY}"},
        {"MODEL_UPSTREAMS": f"a=http://u:{CANARY}@127.0.0.1,{CANARY}"},
        {"CORRAL_SERVER_CORS_ORIGINS": f"http://u:{CANARY}@127.0.0.1"},
        {"CORRAL_SERVER_HOST": f"http://u:{CANARY}@127.0.0.1"},
    ],
)  # fmt: skip
def test_secrets_stand_in_no_error_also_not_in_what_caused_it(configured: Configured, env: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(env=env)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_classes_and_weights_of_clients(configured: Configured) -> None:
    queue = configured(
        yaml="queue: {interactive: [chat], weights: {chat: 2}}", env={"CORRAL_QUEUE_BATCH": "nightly,reports"}
    ).queue
    assert [queue.priority_of(client) for client in ("chat", "other", "nightly", "reports")] == [0, 1, 2, 2]
    assert (queue.weight_of("chat"), queue.weight_of("other")) == (2.0, 1.0)


def test_a_client_is_in_one_class(refused: Refused) -> None:
    [problem] = refused(yaml="queue: {interactive: [a, b], batch: [b]}")
    assert "queue.batch" in problem
    assert "client b is in queue.interactive too" in problem


def test_an_unknown_balance_is_refused_with_those_there_are(refused: Refused) -> None:
    [problem] = refused(env={"CORRAL_ROUTING_BALANCE": "random"})
    assert "'prefix', 'least_busy', 'round_robin' or 'sticky'" in problem
