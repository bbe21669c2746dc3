"""The embedded engine: llama-server's arguments, and the real server behind them."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from corral.upstream.argv import EMBEDDED, llama_argv
from corral.upstream.embedded import CANNOT_SERVE, USAGE, _params
from corral.upstream.embedded_args import AUTO_SLOTS, DEFAULT_PHYSICAL_BATCH, BadArgument, parse
from corral.upstream.embedded_options import OPTIONS, Lora, Option
from corral.upstream.spec import EngineSpec
from support.models import smollm2
from support.ports import free_port

# What a busy machine may need for a model of this size.
READY_S = 60.0
ANSWER_S = 60.0
KEY = "the-key"

# A value for each argument that does not take any number.
VALUES = {
    "-m": "x.gguf",
    "--host": "127.0.0.1,::1",
    "--slot-save-path": ".",
    "--media-path": ".",
    "-ctk": "q8_0",
    "-ctv": "q4_0",
    "-fa": "off",
    "--chat-template-file": __file__,
    "--chat-template-kwargs": '{"a": [1]}',
    "--reasoning-format": "deepseek-legacy",
    "-rea": "off",
    "--pooling": "last",
    "-lm": "mmap+mlock",
    "--numa": "numactl",
    "-ngl": "all",
    "--lora-scaled": "a:b.gguf:0.5",
    "--rope-scaling": "yarn",
}

ENGINE = pytest.mark.engine


def test_an_argument_that_it_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(BadArgument, match=r"no argument --bogus.*LLAMA_SERVER_BIN"):
        parse(["-m", "x.gguf", "--bogus", "1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m"], "-m needs a value"),
        (["-c", "many"], "-c many"),
        (["-np", "0"], "-np 0"),
        (["--pooling", "max"], "none, mean, cls, last, rank"),
        (["--reasoning", "perhaps"], "on, off or auto"),
        (["--chat-template-kwargs", "[1]"], "JSON object"),
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs"),
        (["--chat-template-file", "/does/not/exist"], "No such file"),
        (["--slot-save-path", "/does/not/exist"], "not a directory"),
        (["--sleep-idle-seconds", "0"], "cannot be 0"),
        (["--host", ","], "at least one address"),
        (["--rope-scale", "0"], "--rope-scale 0"),
        (["-c", "99999999999"], "-c 99999999999"),
    ],
)
def test_a_value_that_will_not_do_is_refused_with_its_argument(argv: list[str], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        parse(argv)


def test_slots_are_llama_servers_choice_unless_their_number_is_given() -> None:
    assert parse([]) == {"n_parallel": AUTO_SLOTS, "kv_unified": True}
    assert parse(["-np", "-1"]) == {"n_parallel": AUTO_SLOTS, "kv_unified": True}
    assert parse(["-np", "2"]) == {"n_parallel": 2}
    assert parse(["-np", "2", "--kv-unified"]) == {"n_parallel": 2, "kv_unified": True}


@pytest.mark.parametrize(
    ("argv", "n_batch"), [([], 512), (["-b", "100"], 100), (["-ub", "1024"], 1024), (["-b", "64", "-ub", "1024"], 64)]
)
def test_with_embeddings_a_batch_is_no_larger_than_what_is_computed_at_once(argv: list[str], n_batch: int) -> None:
    assert parse(["--embeddings", *argv])["n_batch"] == n_batch


def test_prompts_are_read_with_as_many_threads_as_replies_are_written() -> None:
    assert parse(["-t", "3"])["cpuparams_batch.n_threads"] == 3
    assert parse(["-t", "3", "-tb", "5"])["cpuparams_batch.n_threads"] == 5


def test_the_last_of_repeated_arguments_counts_and_lists_grow() -> None:
    settings = parse(["-c", "1", "-c", "2", "--alias", "a,b", "--alias", "c", "--lora", "x", "--lora-scaled", "y:0.5"])

    assert settings["n_ctx"] == 2
    assert settings["model_alias"] == ["a", "b", "c"]
    assert settings["lora_adapters"] == [Lora("x"), Lora("y", 0.5)]


def test_values_for_the_template_come_from_several_arguments() -> None:
    argv = ["--chat-template-kwargs", '{"a": "b"}', "--reasoning", "off", "--no-reasoning-preserve"]

    assert parse(argv)["default_template_kwargs"] == {
        "a": '"b"',
        "enable_thinking": "false",
        "preserve_reasoning": "false",
    }


def test_everything_that_corral_passes_is_known() -> None:
    spec = EngineSpec("m", Path("m.gguf"), threads=1, threads_batch=2, ctx=3, n_batch=4, parallel=5)

    settings = parse(llama_argv(spec, 4711, EMBEDDED))

    assert (settings["port"], settings["n_parallel"], settings["n_batch"], settings["n_ubatch"]) == (4711, 5, 4, 4)


@ENGINE
@pytest.mark.parametrize(
    "option", {id(option): option for option in OPTIONS.values()}.values(), ids=lambda o: o.names[0]
)
def test_the_binding_has_a_setting_for_every_argument(option: Option) -> None:
    import xllamacpp

    name = option.names[0]
    argv = [name] if option.is_switch else [name, VALUES.get(name, "7")]
    settings = parse(argv)

    params = _params(xllamacpp, settings)

    for path in option.settings(argv[-1]):
        value: Any = params
        for part in path.split("."):
            value = getattr(value, part)
        assert shown(value) == shown(wanted(xllamacpp, settings[path])), path


def wanted(binding: Any, setting: Any) -> Any:
    """What the binding is to hold."""
    if hasattr(setting, "member"):
        return getattr(getattr(binding, setting.type), setting.member)
    return setting


def shown(value: Any) -> Any:
    """Comparable: adapters by their fields, sets and tuples as lists, single precision as such."""
    if isinstance(value, (list, tuple, set)):
        return sorted((shown(each) for each in value), key=str)
    if hasattr(value, "scale"):
        return (value.path, value.scale)
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


class Engine:
    """A running engine."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)

    def ask(self, method: str, path: str, body: object = None, key: str = KEY) -> tuple[int, Any]:
        connection = self.connect()
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Authorization": f"Bearer {key}"})
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        return reply.status, json.loads(content) if content[:1] in (b"{", b"[") else content

    def until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self._healthy():
            assert self.process.poll() is None, "the engine has ended; its reason stands on stderr"
            assert time.monotonic() < deadline, "the engine is not ready"

    def _healthy(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False


@contextmanager
def engine(spec: EngineSpec) -> Iterator[Engine]:
    port = free_port()
    command = [sys.executable, "-m", "corral.upstream.embedded", *llama_argv(spec, port, EMBEDDED)]
    with subprocess.Popen(command, env=os.environ | {"LLAMA_API_KEY": KEY}) as process:
        try:
            running = Engine(process, port)
            running.until_ready()
            yield running
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served() -> Iterator[Engine]:
    with engine(EngineSpec("smol", smollm2(), threads=2, embeddings=True)) as running:
        yield running


@ENGINE
def test_it_serves_chat_under_its_alias(served: Engine) -> None:
    messages = [{"role": "user", "content": "hello"}]

    status, reply = served.ask("POST", "/v1/chat/completions", {"messages": messages, "temperature": 0})

    assert status == 200
    assert reply["model"] == "smol"
    assert reply["choices"][0]["message"]["content"].startswith("Hello")


@ENGINE
def test_it_serves_embeddings_of_inputs_longer_than_llama_servers_default_batch(served: Engine) -> None:
    tokens = [1000] * (DEFAULT_PHYSICAL_BATCH + 1)

    status, reply = served.ask("POST", "/v1/embeddings", {"input": tokens})

    assert status == 200, reply
    assert len(reply["data"][0]["embedding"]) == 576


@ENGINE
def test_it_wants_the_key_of_the_environment(served: Engine) -> None:
    assert served.ask("GET", "/props", key="another")[0] == 401
    assert served.ask("GET", "/props")[0] == 200


@ENGINE
def test_without_numbers_it_has_llama_servers_slots_and_the_models_context(served: Engine) -> None:
    _, props = served.ask("GET", "/props")

    assert props["total_slots"] == AUTO_SLOTS
    assert props["default_generation_settings"]["n_ctx"] == 8192


@ENGINE
def test_it_shows_metrics_and_slots_and_no_page(served: Engine) -> None:
    assert served.ask("GET", "/metrics")[0] == 200
    assert served.ask("GET", "/slots")[0] == 200
    assert served.ask("GET", "/")[0] == 404


@ENGINE
def test_term_ends_it_in_the_middle_of_a_stream() -> None:
    spec = EngineSpec("smol", smollm2(), ctx=2048, parallel=1)
    with engine(spec) as running:
        assert running.ask("GET", "/props")[1]["total_slots"] == 1
        connection = running.connect()
        body = {"prompt": "Once upon a time", "stream": True, "n_predict": 1900, "ignore_eos": True}
        connection.request("POST", "/completion", json.dumps(body), {"Authorization": f"Bearer {KEY}"})
        assert connection.getresponse().readline().startswith(b"data:")

        running.process.send_signal(signal.SIGTERM)

        # The stream alone would go on for longer.
        assert running.process.wait(spec.stop_grace_s) == 0
        connection.close()


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "corral.upstream.embedded", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=READY_S)


@ENGINE
@pytest.mark.parametrize("argv", [["--bogus"], ["-c", "99999999999999"]], ids=["unknown", "too large"])
def test_wrong_arguments_have_a_status_of_their_own(argv: list[str]) -> None:
    done = run("-m", "x.gguf", *argv)

    assert done.returncode == USAGE
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr != ""


@ENGINE
def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")

    done = run("-m", str(broken), "--port", str(free_port()))

    assert done.returncode == CANNOT_SERVE
    assert "broken.gguf" in done.stderr
    assert "Traceback" not in done.stderr
