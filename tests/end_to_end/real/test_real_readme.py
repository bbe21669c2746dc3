"""What the README tells to run, run as it stands; only the address and the directory are others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.commands import run, succeed
from support.gateway import Gateway
from support.models import smollm2

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def command_with(words: str) -> str:
    """The one command of the README that holds these words, without its comment."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if words in line]
    assert len(lines) == 1, f"{words}: {lines}"
    return re.sub(r"\s+#.*", "", lines[0])


def type_in(command: str, directory: Path) -> str:
    """What a command prints; it has to succeed."""
    return succeed(["bash", "-euc", command], directory)


CURLS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("curl ")]


def answer(demo: Gateway, tmp_path: Path, command: str) -> str:
    assert ADDRESS in command
    return type_in(command.replace(ADDRESS, demo.url), tmp_path)


def test_there_are_the_three_curls() -> None:
    assert ["stream" in curl for curl in CURLS] == [False, True, False]
    assert ["embeddings" in curl for curl in CURLS] == [False, False, True]


def test_the_first_curl_gets_an_answer(demo: Gateway, tmp_path: Path) -> None:
    reply = json.loads(answer(demo, tmp_path, CURLS[0]))
    assert reply["model"] == "llama"
    assert reply["choices"][0]["message"]["content"]


def test_the_second_curl_gets_a_stream(demo: Gateway, tmp_path: Path) -> None:
    # The poem of so small a model never ends; as many words do as on a slow machine fit into a minute.
    command = CURLS[1].replace('"stream":true', '"stream":true,"max_tokens":40')
    *events, done, rest = answer(demo, tmp_path, command).split("\n\n")
    chunks: list[dict[str, Any]] = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert (done, rest) == ("data: [DONE]", "")


def test_the_third_curl_gets_a_vector(demo: Gateway, tmp_path: Path) -> None:
    reply = json.loads(answer(demo, tmp_path, CURLS[2]))
    assert len(reply["data"][0]["embedding"]) == 576


def test_the_python_program_prints_an_answer(demo: Gateway, tmp_path: Path) -> None:
    (program,) = blocks("python")
    (tmp_path / "program.py").write_text(program.replace(ADDRESS, demo.url))
    assert "ChatCompletion(" in type_in("python program.py", tmp_path)


def test_the_load_test_prints_its_table(demo: Gateway) -> None:
    command = command_with("load_test.py")
    assert "--requests 40 --concurrency 8 --model llama --api-key local" in command
    printed = type_in(f"{command} --url {demo.url} --max-tokens 4", ROOT)
    assert "40 requests (chat, streaming, 8 at a time)" in printed
    assert "0 failed" in printed
    for column in ("p50", "p90", "p99", "time to first token", "between tokens", "total", "requests/s", "tokens/s"):
        assert column in printed


def test_the_load_test_fails_when_requests_do(demo: Gateway) -> None:
    command = command_with("load_test.py").replace("--api-key local", "--api-key wrong")
    done = run(["bash", "-euc", f"{command} --url {demo.url}"], ROOT)
    assert done.returncode == 1
    assert "40 failed" in done.stdout
    assert "invalid_api_key" in done.stdout


def test_the_model_is_pulled_to_where_it_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / smollm2().name).symlink_to(smollm2())
    printed = type_in(command_with("corral pull smollm2"), tmp_path)
    assert (tmp_path / printed.strip()).samefile(smollm2())


@pytest.mark.parametrize(
    "settings", [*blocks("env"), (ROOT / ".env.example").read_text()], ids=["models", "application", "example"]
)
def test_settings_that_are_shown_are_sound(settings: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(settings)
    assert "the settings are sound" in type_in("corral check", tmp_path)


def test_the_commands_that_are_shown_exist(tmp_path: Path) -> None:
    for script in re.findall(r"(?:\./|python )(scripts/[\w.]+)", README):
        assert (ROOT / script).is_file()
    for command in set(re.findall(r"corral (serve|check|pull|bench|version)", README)):
        assert "Usage: corral" in type_in(f"corral {command} --help", tmp_path)
