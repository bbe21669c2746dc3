"""What a llama-server is started with."""

import sys
from pathlib import Path

import pytest

from corral.config import Launch, LlamaSettings, ModelSettings
from corral.core.errors import EngineError
from corral.upstream.argv import EMBEDDED, EMBEDDINGS_BATCH, PROMPT_BATCH, engine_command, llama_argv, llama_environment
from corral.upstream.spec import EngineSpec

SPEC = EngineSpec("llama-8b", Path("/models/x.gguf"))


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def values(argv: list[str], name: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == name]


def test_the_model_its_name_and_the_address_are_passed() -> None:
    argv = llama_argv(SPEC, 4711, EMBEDDED)

    assert values(argv, "--model") == ["/models/x.gguf"]
    assert values(argv, "--alias") == ["llama-8b"]
    assert values(argv, "--host") == ["127.0.0.1"]
    assert values(argv, "--port") == ["4711"]
    assert {"--metrics", "--slots"} <= set(argv)


def test_numbers_that_are_not_set_are_left_to_llama_server() -> None:
    argv = llama_argv(EngineSpec("m", Path("m.gguf"), embeddings=False), 1, EMBEDDED)

    assert not {"-c", "-t", "-tb", "-ub", "-np", "--embeddings", "--pooling"} & set(argv)


def test_every_number_has_its_argument() -> None:
    spec = EngineSpec("m", Path("m.gguf"), threads=1, threads_batch=2, ctx=3, n_batch=4, parallel=5)

    argv = llama_argv(spec, 1, EMBEDDED)

    given = {name: values(argv, name) for name in ("-t", "-tb", "-c", "-b", "-np")}
    assert given == {"-t": ["1"], "-tb": ["2"], "-c": ["3"], "-b": ["4"], "-np": ["5"]}


@pytest.mark.parametrize(
    ("embeddings", "n_batch", "limit"),
    [(None, None, PROMPT_BATCH), (None, 2048, 2048), (True, None, EMBEDDINGS_BATCH), (True, 256, 256)],
)
def test_embeddings_have_one_limit_for_both_batches(embeddings: bool | None, n_batch: int | None, limit: int) -> None:
    argv = llama_argv(EngineSpec("m", Path("m.gguf"), n_batch=n_batch, embeddings=embeddings), 1, EMBEDDED)

    assert "--embeddings" in argv
    assert values(argv, "--pooling") == ["mean"]
    assert values(argv, "-b") == values(argv, "-ub") == [str(limit)]


@pytest.mark.parametrize(("n_batch", "batch"), [(None, PROMPT_BATCH), (512, 512)])
def test_without_embeddings_prompts_alone_decide(n_batch: int | None, batch: int) -> None:
    argv = llama_argv(EngineSpec("m", Path("m.gguf"), n_batch=n_batch, embeddings=False), 1, EMBEDDED)

    assert (values(argv, "-b"), values(argv, "-ub")) == ([str(batch)], [])


@pytest.mark.parametrize(("embeddings", "batch"), [(None, []), (False, []), (True, [str(EMBEDDINGS_BATCH)])])
def test_a_native_llama_server_may_have_a_gpu_and_keeps_its_own_batch(
    embeddings: bool | None, batch: list[str]
) -> None:
    argv = llama_argv(EngineSpec("m", Path("m.gguf"), embeddings=embeddings), 1, ["/opt/llama-server"])

    assert (values(argv, "-b"), values(argv, "-ub")) == (batch, batch)


@pytest.mark.parametrize("name", ["-b", "--batch-size", "-ub", "--ubatch-size"])
def test_a_batch_among_the_extra_arguments_leaves_no_room_for_a_default(name: str) -> None:
    argv = llama_argv(EngineSpec("m", Path("m.gguf"), extra_args=(name, "300")), 1, EMBEDDED)

    assert [word for word in argv if word in {"-b", "--batch-size", "-ub", "--ubatch-size"}] == [name]
    assert values(argv, name) == ["300"]


@pytest.mark.parametrize(
    ("head", "setting", "embeddings"),
    [
        (b"GGUF bert.pooling_type", {}, True),
        (b"GGUF bert.pooling_type", {"embeddings": False}, False),
        (b"GGUF llama.context_length", {}, None),
        (b"GGUF llama.context_length", {"embeddings": True}, True),
    ],
)
def test_a_model_that_is_made_for_embeddings_serves_long_ones_unless_told_not_to(
    tmp_path: Path, head: bytes, setting: dict[str, bool], embeddings: bool | None
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(head)

    assert EngineSpec.own("m", file, LlamaSettings.model_validate(setting)).embeddings is embeddings


def test_extra_arguments_come_last_and_so_win() -> None:
    argv = llama_argv(EngineSpec("m", Path("m.gguf"), extra_args=("--pooling", "cls")), 1, EMBEDDED)

    assert argv[-2:] == ["--pooling", "cls"]


def test_the_key_goes_by_environment_and_corrals_own_settings_stay_here() -> None:
    inherited = {
        "PATH": "/bin",
        "HF_TOKEN": "kept",
        "OPENAI_API_KEY": "a",
        "OPENAI_API_KEYS": "b",
        "OPENAI_API_KEYS_FILE": "c",
        "OPERATOR_API_KEY": "d",
        "CORRAL_LIMITS_REQUESTS": "1",
        "LLAMA_API_KEY": "of other upstreams",
    }

    assert llama_environment(inherited, "k") == {
        "PATH": "/bin",
        "HF_TOKEN": "kept",
        "LLAMA_ARG_UI": "0",
        "LLAMA_API_KEY": "k",
    }
    assert "LLAMA_API_KEY" not in llama_environment(inherited, None)


def test_a_spec_shows_no_key() -> None:
    assert "geheim" not in repr(EngineSpec("m", Path("m.gguf"), api_key="geheim"))


def test_the_named_llama_server_comes_before_the_one_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path, named = executable(tmp_path / "llama-server"), executable(tmp_path / "mine")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert engine_command(named) == [str(named)]
    assert engine_command(None) == [str(on_path)]


def test_without_a_native_one_the_embedded_engine_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert engine_command(None) == [sys.executable, "-P", "-m", "corral.upstream.embedded"]


def test_without_any_engine_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    with pytest.raises(EngineError, match=r"pip install 'corral\[engine\]'.*LLAMA_SERVER_BIN"):
        engine_command(None)


@pytest.mark.parametrize("kind", ["missing", "not executable", "a directory"])
def test_a_llama_server_that_cannot_be_run_is_refused(tmp_path: Path, kind: str) -> None:
    named = tmp_path / "llama-server"
    if kind == "not executable":
        named.write_text("")
    elif kind == "a directory":
        named.mkdir()

    with pytest.raises(EngineError, match="LLAMA_SERVER_BIN"):
        engine_command(named)


def test_a_launched_server_listens_where_the_url_says_with_the_key_of_the_settings() -> None:
    llama = LlamaSettings.model_validate({"api_key": "k", "threads": 3, "ctx": 2048})

    spec = EngineSpec.launched(Launch("m", Path("m.gguf"), "http://[::1]:8081"), llama)

    assert (spec.host, spec.port, spec.api_key, spec.threads, spec.ctx) == ("::1", 8081, "k", 3, 2048)


def test_a_server_of_corrals_own_takes_any_port_and_no_key_of_the_settings() -> None:
    spec = EngineSpec.own("m", Path("m.gguf"), LlamaSettings.model_validate({"api_key": "k"}))

    assert (spec.port, spec.api_key) == (0, None)


def test_what_a_model_says_comes_before_what_all_say(tmp_path: Path) -> None:
    llama = LlamaSettings(ctx=1, parallel=2, threads=3, extra_args=("--all",), n_batch=4)
    model = ModelSettings(name="m", file=tmp_path / "m.gguf", ctx=5, extra_args=())
    spec = EngineSpec.of(model, llama)
    assert (spec.ctx, spec.parallel, spec.threads, spec.extra_args, spec.n_batch) == (5, 2, 3, (), 4)


def test_a_gpu_and_the_cache_of_prompts_are_told_in_llama_servers_words(tmp_path: Path) -> None:
    llama = LlamaSettings.model_validate({"gpu_layers": 99, "cache_ram_bytes": "2GiB"})
    model = ModelSettings.model_validate({"name": "m", "file": tmp_path / "m.gguf", "cache_ram_bytes": "512MiB"})
    argv = llama_argv(EngineSpec.of(model, llama), 8080, ["llama-server"])
    assert argv[argv.index("-ngl") + 1] == "99"
    assert argv[argv.index("--cache-ram") + 1] == "512"
    assert {"-ngl", "--cache-ram"}.isdisjoint(llama_argv(EngineSpec("m", Path("m.gguf")), 8080, ["llama-server"]))
