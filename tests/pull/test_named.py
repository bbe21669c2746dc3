"""Models that name what to fetch: from a hub on loopback, once, and from then on without asking."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from corral.config import Config, ModelSettings
from corral.core.errors import ConfigError
from corral.pull.memory import remember, remembered
from corral.pull.named import fetched
from support.fake_hub import REPOSITORY, Hub, serving_hub

CONTENT = b"GGUF" + bytes(1000)
FETCH = """
import sys
from pathlib import Path
from rich.console import Console
from corral.config import load
from corral.pull.named import fetched
config = fetched(load(file=Path(sys.argv[1])), Console(stderr=True), Path(sys.argv[2]))
print(*(f"{model.name}={model.file}" for model in config.models))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub(Hub({"m-Q4_K_M.gguf": CONTENT})) as running:
        yield running


def fetch(hub: Hub, directory: Path) -> str:
    """The names and files of the models in a directory's settings, once all are there."""
    home = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": "/nonexistent", "HF_ENDPOINT": hub.url}
    command = [sys.executable, "-c", FETCH, str(directory / "corral.yaml"), str(directory / "models")]
    done = subprocess.run(
        command, env={**os.environ, **home}, capture_output=True, text=True, check=True, timeout=100, cwd=directory
    )
    return done.stdout.strip()


def test_what_a_model_names_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text(f"models: [{{hf: {REPOSITORY}, replicas: 2}}, {{name: b, hf: {REPOSITORY}}}]")
    file = tmp_path / "models" / "m-Q4_K_M.gguf"
    name = REPOSITORY.partition("/")[2].lower()
    assert fetch(hub, tmp_path) == f"{name}={file} b={file}"
    assert file.read_bytes() == CONTENT
    asked = len(hub.asked)
    assert fetch(hub, tmp_path) == f"{name}={file} b={file}"
    assert len(hub.asked) == asked == 1
    # One that was lost is fetched again.
    file.unlink()
    fetch(hub, tmp_path)
    assert file.read_bytes() == CONTENT


def test_what_was_pulled_before_is_taken_without_asking(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(CONTENT)
    remember("org/repo:Q4_K_M", file, tmp_path)
    config = Config(models=(ModelSettings(name="m", hf="org/repo:Q4_K_M"),))
    (model,) = fetched(config, Console(), tmp_path).models
    assert model.file == file
    plain = Config(models=(ModelSettings(name="m", upstreams=("http://127.0.0.1:1",)),))
    assert fetched(plain, Console(), tmp_path) is plain


def test_what_cannot_be_had_is_a_wrong_setting(tmp_path: Path) -> None:
    config = Config(models=(ModelSettings(name="m", hf="nothing-of-the-kind"),))
    with pytest.raises(ConfigError, match="the model 'm', hf: no model is called 'nothing-of-the-kind'"):
        fetched(config, Console(), tmp_path)


@pytest.mark.parametrize("told", ["", "nonsense", "[]", '{"a": 7}', '{"a": "gone.gguf"}'])
def test_a_note_that_says_nothing_sound_is_as_none(told: str, tmp_path: Path) -> None:
    (tmp_path / "pulled.json").write_text(told)
    assert remembered("a", tmp_path) is None
    file = tmp_path / "a.gguf"
    file.write_bytes(CONTENT)
    remember("a", file, tmp_path)
    assert remembered("a", tmp_path) == file
