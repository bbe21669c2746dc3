"""Names and lines of .env and the environment."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from corral.config import Config, settings_table

Refused = Callable[..., list[str]]
Configured = Callable[..., Config]


@pytest.mark.parametrize(
    ("name", "value", "attribute", "meant"),
    [
        ("LLAMA_THREADS", "20", "threads", 20),
        ("LLAMA_THREADS_BATCH", "16", "threads_batch", 16),
        ("LLAMA_CTX", "4096", "ctx", 4096),
        ("LLAMA_N_BATCH", "1024", "n_batch", 1024),
        ("LLAMA_PARALLEL", "2", "parallel", 2),
        ("LLAMA_EMBEDDINGS", "0", "embeddings", False),
        ("LLAMA_EMBEDDINGS", "true", "embeddings", True),
        ("LLAMA_SERVER_BIN", "/bin/sh", "server_bin", Path("/bin/sh")),
        ("MODEL_PATH", "./models/x.gguf", "model_path", Path("models/x.gguf")),
        ("MODEL_PATHS", "a=./x.gguf,b=y.gguf", "model_paths", (("a", Path("x.gguf")), ("b", Path("y.gguf")))),
        ("ENABLED_MODELS", "a,b", "enabled", ("a", "b")),
        ("CORRAL_LLAMA_CTX", "4096", "ctx", 4096),
        ("CORRAL_LLAMA_LOG_SIZE", "1MiB", "log_bytes", 2**20),
    ],
)
def test_names_for_llama_server(configured: Configured, name: str, value: str, attribute: str, meant: object) -> None:
    assert getattr(configured(env={name: value}).llama, attribute) == meant
    assert getattr(configured(dotenv=f'export {name}="{value}" # so\n').llama, attribute) == meant


def test_every_setting_has_a_name_in_the_environment() -> None:
    assert [setting.path for setting in settings_table() if not (setting.env_names or "[]" in setting.path)] == []


def test_no_name_sets_two_things() -> None:
    names = [name for setting in settings_table() for name in setting.env_names]
    assert len(set(names)) == len(names)


def test_a_path_becomes_a_name_in_capitals(configured: Configured) -> None:
    config = configured(env={"CORRAL_TIMEOUTS_CHAT_FIRST_BYTE": "2m", "CORRAL_SERVER_BODY_SIZE": "1KiB"})
    assert config.timeouts.chat.first_byte_s == 120
    assert config.timeouts.completions.first_byte_s == 300
    assert config.server.body_bytes == 1024


@pytest.mark.parametrize(
    ("name", "right"),
    [("CORRAL_SERVER_PROT", "CORRAL_SERVER_PORT"), ("CORRAL_CONFG", "CORRAL_CONFIG"), ("CORRAL_PORT", "CORRAL_SERVER")],
)
def test_an_unknown_corral_name_is_refused_with_the_nearest(refused: Refused, name: str, right: str) -> None:
    for sources in ({"env": {name: "x"}}, {"dotenv": f"{name}=x"}):
        (problem,) = refused(**sources)
        assert problem.startswith(f"{name} (")
        assert f"did you mean {right}" in problem


def test_names_of_other_programs_are_left_alone(configured: Configured) -> None:
    others = {"PATH": "/bin", "LLAMA_ARG_CTX_SIZE": "x", "OPENAI_CHAT_MODEL": "llama", "OPENAI_BASE_URL": "x"}
    assert configured(env=others) == configured(dotenv="OPENAI_ENDPOINT=x\nOPENAI_ENDPOINT=y\n") == configured()


@pytest.mark.parametrize("env", [{"LLAMA_CTX": ""}, {"LLAMA_CTX": "  "}, {"OPENAI_API_KEY": ""}, {"CORRAL_CONFIG": ""}])
def test_an_empty_value_is_not_given(configured: Configured, env: Mapping[str, str]) -> None:
    assert configured(env=env) == configured()


def test_an_empty_value_leaves_the_weaker_source_in_force(configured: Configured) -> None:
    assert len(configured(dotenv="OPENAI_API_KEY=local", env={"OPENAI_API_KEY": ""}).auth.keys) == 1


def test_both_names_of_a_setting_may_agree_and_not_differ(configured: Configured, refused: Refused) -> None:
    assert configured(env={"LLAMA_CTX": "1", "CORRAL_LLAMA_CTX": "1"}).llama.ctx == 1
    (problem,) = refused(env={"LLAMA_CTX": "1", "CORRAL_LLAMA_CTX": "2"})
    assert problem == "CORRAL_LLAMA_CTX (environment): LLAMA_CTX sets the same to another value; keep one of them"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("LLAMA_CTX", "abc", "'abc' is not a whole number; write e.g. LLAMA_CTX=4096"),
        ("LLAMA_EMBEDDINGS", "maybe", "'maybe' is neither true nor false; write 1, 0, true or false"),
        ("LLAMA_THREADS", "-1", "'-1' is less than 1; write e.g. LLAMA_THREADS=20"),
        ("CORRAL_SERVER_PORT", "70000", "'70000' is more than 65535; write e.g. CORRAL_SERVER_PORT=8000"),
        ("CORRAL_QUEUE_PATIENCE", "-1s", "'-1s' is not a duration; write e.g. 30s, 500ms, 5m, 1h"),
        ("CORRAL_LIMITS_WINDOW", "0", "'0' is not more than 0; write e.g. CORRAL_LIMITS_WINDOW=60s"),
        ("MODEL_PATHS", "a=x,b", "is not a pair NAME=VALUE; write e.g. llama-8b=./models/llama-8b.gguf"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(refused: Refused, name: str, value: str, problem: str) -> None:
    assert refused(env={name: value}) == [f"{name} (environment): {problem}"]


def test_a_problem_in_a_dotenv_file_names_its_line(refused: Refused) -> None:
    (problem,) = refused(dotenv="# Text.\n\n\nLLAMA_CTX=abc\n")
    assert problem.startswith("LLAMA_CTX (.env line 4): 'abc'")


@pytest.mark.parametrize("line", ["canary-key", 'LLAMA_CTX="canary', "=canary", "canary key"])
def test_a_line_that_is_no_assignment_is_refused_and_not_quoted(refused: Refused, line: str) -> None:
    (problem,) = refused(dotenv=f"LLAMA_THREADS=1\n{line}\n")
    assert problem.startswith(".env (.env line 2): this is no assignment; ")
    assert "canary" not in problem


def test_a_name_twice_in_a_dotenv_file_is_refused(refused: Refused) -> None:
    (problem,) = refused(dotenv="LLAMA_CTX=1\nLLAMA_CTX=1\n")
    assert problem == "LLAMA_CTX (.env line 2): is set in line 1 too; keep one of them"


def test_nothing_in_a_dotenv_file_is_expanded(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTX", "4096")
    assert configured(dotenv="ENABLED_MODELS=a\nMODEL_PATH='${CTX}'").llama.model_path == Path("${CTX}")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("CORRAL_VALKEY_URL", "redis://:canary/x@host:6379/0"),
        ("CORRAL_VALKEY_URL", "redis://u:x[canary@host:6379/0"),
        ("CORRAL_VALKEY_URL", "redis://:canary@host:port/0"),
        ("CORRAL_VALKEY_URL", "http://:canary@host"),
        ("CORRAL_STORE_URL", "postgresql://u:canary@host:port/db"),
        ("CORRAL_STORE_URL", "postgresql://u:canary@host/db?canary=1"),
        ("CORRAL_STORE_URL", "mysql://u:canary@host/db"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_and_not_repeated(refused: Refused, name: str, url: str) -> None:
    (problem,) = refused(env={name: url})
    assert "the URL" in problem
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("CORRAL_VALKEY_URL", "rediss://u:p%2Fw@[::1]:6379"),
        ("CORRAL_VALKEY_URL", "unix:///run/valkey.sock"),
        ("CORRAL_STORE_URL", "postgresql:///db?host=/run/postgresql"),
        ("CORRAL_STORE_URL", "postgres://u:p/w@[::1]:5432/db?sslmode=require"),
    ],
)
def test_an_address_that_can_be_read_is_taken(configured: Configured, name: str, url: str) -> None:
    config = configured(env={name: url})
    taken = config.valkey.url or config.store.url
    assert taken is not None
    assert taken.get_secret_value() == url
