"""Configuration tests run in an empty directory and give every source themselves."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from corral.config import Config, load
from corral.core.errors import ConfigError

Refused = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that no .env or corral.yaml of the checkout is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def configured(here: Path) -> Callable[..., Config]:
    """Load from the text of corral.yaml and .env, an environment and flags; what is not given is empty."""

    def load_from(
        yaml: str = "",
        dotenv: str = "",
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Config:
        (here / "corral.yaml").write_text(yaml)
        (here / ".env").write_text(dotenv)
        return load(env=env or {}, flags=flags)

    return load_from


@pytest.fixture
def refused(configured: Callable[..., Config]) -> Refused:
    """The problems of a configuration that must have some."""

    def problems_of(**sources: object) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            configured(**sources)
        return caught.value.problems

    return problems_of


@pytest.fixture
def gguf_file(here: Path) -> Callable[[str], Path]:
    """Make a file that begins as a model does."""

    def make(name: str) -> Path:
        file = here / name
        file.write_bytes(b"GGUF\x03\x00\x00\x00")
        return file

    return make
