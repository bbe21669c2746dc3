"""``corral engine`` and the launcher scripts, as users run them: processes that start and stop llama-servers."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from corral.upstream.launch import KEEPER_LOG
from corral.upstream.pidfile import FILE_NAME, Keeper, find
from support.children import PATIENCE_S, alive, fake_engine
from support.ports import free_port

ENGINE = [sys.executable, "-m", "corral.engine_cli"]
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

# What the machine's own environment may say about models.
OURS = ("OPENAI_", "MODEL_", "LLAMA_", "ENABLED_", "CORRAL_")
INTERRUPTED = 130


class Place:
    """A working directory with a fake llama-server and settings for two models."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.first, self.second = free_port(), free_port()
        (directory / "m.gguf").write_bytes(b"GGUF")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | {
            "MODEL_PATHS": "a=./m.gguf,org/b=./m.gguf",
            "MODEL_UPSTREAMS": f"a=http://127.0.0.1:{self.first},org/b=http://127.0.0.1:{self.second}",
        }
        self.engine()

    def engine(self, *flags: str) -> None:
        """Let the fake llama-server have these flags."""
        self.environment["LLAMA_SERVER_BIN"] = str(fake_engine(self.directory, *flags))

    def corral(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*ENGINE, *arguments],
            cwd=self.directory,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ENGINE, *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def keeper(self) -> Keeper:
        keeper = find(self.run_dir)
        assert keeper is not None
        return keeper


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    if find(made.run_dir):
        made.corral("stop")
    assert not any(listening(port) for port in (made.first, made.second)), "a llama-server is left"


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def name_at(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/v1/models")
        told = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return str(told["data"][0]["id"])


def until(port: int, *, listens: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while listening(port) is not listens:
        assert time.monotonic() < deadline, f"port {port}: still not so"
        time.sleep(0.01)


def test_start_starts_every_model_at_its_address_and_says_where(place: Place) -> None:
    done = place.corral("start")

    assert done.returncode == 0, done.stderr
    assert name_at(place.first) == "a"
    assert name_at(place.second) == "org/b"
    for told in ("a: ready", "org/b: ready", str(place.first), str(place.second), "run/logs/a.log"):
        assert told in done.stdout
    assert (place.run_dir / "logs" / "a.log").is_file()


def test_stop_ends_them_and_forgets_them(place: Place) -> None:
    place.corral("start")
    keeper = place.keeper()

    done = place.corral("stop")

    assert (done.returncode, done.stdout.strip()) == (0, "stopped: a, org/b")
    assert not alive(keeper.pid)
    assert not listening(place.first)
    assert not (place.run_dir / FILE_NAME).exists()


def test_only_enabled_models_are_started(place: Place) -> None:
    place.environment["ENABLED_MODELS"] = "org/b"

    assert place.corral("start").returncode == 0

    assert not listening(place.first)
    assert listening(place.second)


def test_start_does_not_start_twice(place: Place) -> None:
    place.corral("start")
    keeper = place.keeper()

    done = place.corral("start")

    assert done.returncode == 0
    assert "running already" in done.stdout
    assert place.keeper() == keeper


def test_stop_with_nothing_to_stop_says_so(place: Place) -> None:
    done = place.corral("stop")

    assert (done.returncode, done.stdout.strip()) == (0, "nothing is running")


def test_one_that_cannot_be_started_stops_all_and_shows_its_last_lines(place: Place) -> None:
    # The port of the second is taken by a listener of the test.
    with socket.create_server(("127.0.0.1", place.second)):
        done = place.corral("start")

        assert done.returncode == 1
        assert f"org/b cannot be started: llama-server cannot be started at 127.0.0.1:{place.second}" in done.stderr
        assert not listening(place.first)
        assert find(place.run_dir) is None


def test_the_last_lines_of_a_failed_start_are_shown(place: Place) -> None:
    place.engine("--fail-load")

    done = place.corral("start")

    assert done.returncode == 1
    assert "error: failed to load model" in done.stderr


def test_ctrl_c_while_they_load_leaves_nothing(place: Place) -> None:
    place.engine("--load-s", "600")
    with place.begin("start") as starting:
        until(place.first, listens=True)

        starting.send_signal(signal.SIGINT)

        assert starting.wait(PATIENCE_S) == INTERRUPTED
    assert not listening(place.first)
    assert find(place.run_dir) is None


def test_a_crashed_llama_server_is_started_again(place: Place) -> None:
    done = place.corral("start")
    row = next(line for line in done.stdout.splitlines() if f":{place.first} " in line)
    pid = int(next(word for word in row.split() if word.isdecimal()))

    os.kill(pid, signal.SIGKILL)

    until(place.first, listens=False)
    until(place.first, listens=True)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the leash sees it a moment later")
def test_kill_9_of_the_keeper_leaves_no_llama_server_and_a_new_start_is_possible(place: Place) -> None:
    place.corral("start")

    os.kill(place.keeper().pid, signal.SIGKILL)
    until(place.first, listens=False)
    until(place.second, listens=False)

    assert place.corral("stop").stdout.strip() == "nothing is running"
    assert place.corral("start").returncode == 0


def test_a_keeper_that_does_not_listen_is_killed_with_its_children(place: Place) -> None:
    place.corral("start")
    keeper = place.keeper()
    entry = place.run_dir / FILE_NAME
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"grace_s": 0.1}))
    os.kill(keeper.pid, signal.SIGSTOP)

    done = place.corral("stop")

    assert done.returncode == 0
    assert not alive(keeper.pid)
    until(place.first, listens=False)


def test_wrong_settings_are_told_and_nothing_is_started(place: Place) -> None:
    done = place.corral("start", MODEL_PATHS="a=./gone.gguf")

    assert done.returncode == 2
    assert "gone.gguf" in done.stderr
    assert not (place.run_dir / KEEPER_LOG).exists()


def test_run_is_the_llama_server_and_ends_with_ctrl_c(place: Place) -> None:
    del place.environment["MODEL_PATHS"], place.environment["MODEL_UPSTREAMS"]
    place.environment |= {"MODEL_PATH": "./m.gguf", "LLAMA_BASE_URL": f"http://127.0.0.1:{place.first}"}
    with place.begin("run") as running:
        until(place.first, listens=True)
        assert running.stdout is not None
        assert str(place.first) in running.stdout.readline()
        # The fake's first words: the log is shown.
        assert "control" in running.stdout.readline()

        running.send_signal(signal.SIGINT)

        assert running.wait(PATIENCE_S) == 0


def test_run_wants_one_model(place: Place) -> None:
    done = place.corral("run")

    assert done.returncode == 2
    assert "corral engine start" in done.stderr


SCRIPT_DOES: Mapping[str, str] = {
    "run_llama_server.sh": "run",
    "run_llama_servers_multi.sh": "start",
    "stop_llama_servers_multi.sh": "stop",
}


@pytest.mark.parametrize(("script", "command"), SCRIPT_DOES.items())
def test_a_script_is_a_door_to_its_command(script: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / script, tmp_path / "scripts" / script)
    corral = tmp_path / ".venv" / "bin" / "corral"
    corral.parent.mkdir(parents=True)
    corral.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    corral.chmod(0o755)

    done = subprocess.run([tmp_path / "scripts" / script, "--x", "y z"], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [str(tmp_path.resolve()), "engine", command, "--x", "y", "z"]
