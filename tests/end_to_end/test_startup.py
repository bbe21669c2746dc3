"""What cannot work is refused at the start: by the setting's name, with exit code 2, and without showing a secret."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from corral.cli import main
from support.door import Door
from support.gateway import PATIENCE_S, Gateway, is_setting
from support.gguf_file import llama, write_gguf
from support.talk import CHAT, chat, post

SECRET = "hunter2-0c7d51e9"
URL = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Refused:
    """Settings that are refused, and what the refusal must say: the setting's name first."""

    says: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    yaml: str = ""


REFUSED: dict[str, Refused] = {
    "a bad URL": Refused(("MODEL_UPSTREAMS", "ftp"), {"MODEL_UPSTREAMS": "a=ftp://127.0.0.1"}),
    "a password in a URL": Refused(("LLAMA_BASE_URL", "LLAMA_API_KEY"), {"LLAMA_BASE_URL": f"http://u:{SECRET}@x:1"}),
    "a pair that is none": Refused(("MODEL_UPSTREAMS", "entry 2"), {"MODEL_UPSTREAMS": f"a={URL},{SECRET}"}),
    "a name twice": Refused(("MODEL_UPSTREAMS", "'a'"), {"MODEL_UPSTREAMS": f"a={URL},a={URL}1"}),
    "a key twice": Refused(("OPENAI_API_KEYS", "entry 2"), {"OPENAI_API_KEYS": f"{SECRET}:ann,{SECRET}:bob"}),
    "a key of several words": Refused(("OPENAI_API_KEYS", "entry 1"), {"OPENAI_API_KEYS": f"two {SECRET}:ann"}),
    "a client that is none": Refused(("OPENAI_API_KEYS", "entry 1"), {"OPENAI_API_KEYS": f"{SECRET}:an/n"}),
    "an unknown name": Refused(
        ("CORRAL_TIMEOUTS_CHAT_FIRSTBYTE", "CORRAL_TIMEOUTS_CHAT_FIRST_BYTE"), {"CORRAL_TIMEOUTS_CHAT_FIRSTBYTE": "5s"}
    ),
    "no duration": Refused(("CORRAL_QUEUE_PATIENCE", "soon"), {"CORRAL_QUEUE_PATIENCE": "soon"}),
    "an unknown setting": Refused(("queue.lenght", "line 2", "queue.length"), yaml="queue:\n  lenght: 5\n"),
    "a key in the file": Refused(("auth.keys", "OPENAI_API_KEYS"), yaml=f"auth:\n  keys: [{SECRET}]\n"),
    "no YAML": Refused(("corral.yaml", "line 3"), yaml=f"queue:\n  {SECRET}: [\n"),
    "no such model file": Refused(("--model", "nowhere.gguf"), arguments=("--model", "nowhere.gguf")),
    "a model file that is none": Refused(("--model", "GGUF"), arguments=("--model", "corral.yaml"), yaml="{}\n"),
    "everybody, without a key": Refused(("server.host", "OPENAI_API_KEY"), arguments=("--host", "0.0.0.0")),
    "everybody, with a key of the examples": Refused(
        ("OPENAI_API_KEY", "0.0.0.0"), {"OPENAI_API_KEY": "local"}, arguments=("--host", "0.0.0.0")
    ),
}


def corral(directory: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    clean = {name: value for name, value in os.environ.items() if not is_setting(name)}
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments],
        cwd=directory,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def check(
    directory: Path, case: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The exit code of ``corral check`` and what it printed; in this process, which takes a tenth of the time."""
    monkeypatch.chdir(directory)
    for name in filter(is_setting, os.environ):
        monkeypatch.delenv(name)
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["corral", "check", *case.arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return int(str(ended.value.code)), told.out + told.err


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = REFUSED[name]
    if case.yaml:
        (tmp_path / "corral.yaml").write_text(case.yaml)
    code, told = check(tmp_path, case, monkeypatch, capsys)
    assert code == 2, told
    assert [word for word in case.says if word not in told] == []
    assert "Traceback" not in told
    assert SECRET not in told


@pytest.mark.parametrize("name", ["a key twice", "no such model file", "everybody, without a key"])
def test_serve_and_check_say_the_same(name: str, tmp_path: Path) -> None:
    case = REFUSED[name]
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda command: corral(tmp_path, command, *case.arguments, **case.env), ("serve", "check"))
    served, checked = runs
    assert (served.returncode, checked.returncode) == (2, 2)
    assert served.stderr == checked.stderr
    assert case.says[0] in served.stderr
    assert served.stdout == checked.stdout == ""
    assert SECRET not in served.stderr


def test_a_port_that_is_taken_is_refused_by_name(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = corral(tmp_path, "serve", "--port", str(port), OPENAI_API_KEY="local")
    assert done.returncode == 2
    assert "server.port" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_check_shows_what_would_be_served_and_no_key(tmp_path: Path) -> None:
    models = f"small={URL},large={URL}1"
    done = corral(tmp_path, "check", MODEL_UPSTREAMS=models, OPENAI_API_KEYS=f"{SECRET}:ann", LLAMA_API_KEY=SECRET)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("small", "large", URL, "ann"))
    assert SECRET not in done.stdout + done.stderr


def test_check_warns_of_clients_that_no_key_has(tmp_path: Path) -> None:
    settings = {"MODEL_UPSTREAMS": f"one={URL}", "OPENAI_API_KEYS": f"{SECRET}:nightly"}
    done = corral(tmp_path, "check", CORRAL_QUEUE_BATCH="nightli", **settings)
    assert done.returncode == 0
    assert "warning: queue.batch: no key has the client nightli; did you mean nightly?\n" in done.stdout


def test_other_machines_see_metrics_and_addresses_with_the_operators_key_only(tmp_path: Path) -> None:
    keys = {"OPENAI_API_KEY": SECRET, "OPERATOR_API_KEY": f"{SECRET}-of-the-operator"}
    clients, operators = ({"x-api-key": key} for key in keys.values())
    listening = Gateway(
        tmp_path, "--host", "0.0.0.0", door=Door.LANE, check_idle=False, MODEL_UPSTREAMS=f"one={URL}", **keys
    )
    with listening as gateway:
        metrics = [gateway.get("/metrics", headers=headers).status_code for headers in ({}, clients, operators)]
        assert metrics == [401, 403, 200]
        health = [gateway.get("/health", headers=headers).text for headers in ({}, clients, operators)]
        assert ["127.0.0.1:1" in text for text in health] == [False, False, True]
        assert gateway.get("/health/live").status_code == 200
        assert post(gateway, CHAT, chat(), key=None).status == 401
        assert SECRET not in gateway.output


def test_check_says_when_models_are_loaded_and_what_they_take(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", llama(), size=5 * 2**20)
    models = "- {name: a, file: x.gguf}\n- {name: b, file: x.gguf, preload: true, memory_size: 1GiB, replicas: 2}\n"
    (tmp_path / "corral.yaml").write_text(f"fleet: {{on_demand: true, memory_size: 3GiB}}\nmodels:\n{models}")
    done = corral(tmp_path, "check")
    assert done.returncode == 0
    told = [line.split() for line in done.stdout.replace("│", "").splitlines()]
    # Its weights and the margin; the cache of 128 tokens is small.
    assert ["a", "x.gguf", "on", "demand", "about", "101", "MiB"] in told
    assert ["b", "x.gguf", "at", "the", "start", "2.0", "GiB"] in told
    assert "memory: 3.0 GiB" in done.stdout
