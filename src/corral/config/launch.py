"""What the launcher scripts start: a file at an address for each enabled model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from corral.config import gguf
from corral.config.problems import Mistake, did_you_mean
from corral.config.settings import Config
from corral.config.urls import is_loopback
from corral.config.values import repeated_name
from corral.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Launch:
    """A llama-server to start: it serves ``path`` under ``name`` and listens where ``url`` says, on loopback."""

    name: str
    path: Path
    url: str


def launch_plan(config: Config) -> tuple[Launch, ...]:
    """One entry per llama-server, in the order of MODEL_PATHS. Raises ``ConfigError`` with all problems.

    MODEL_PATHS goes with MODEL_UPSTREAMS; MODEL_PATH, which counts only without it, with LLAMA_BASE_URL.
    Files of models that are not enabled may be missing.
    """
    files, problems = _enabled_files(config)
    urls = {model.name: model.upstreams for model in config.models}
    plan: list[Launch] = []
    for name, path in files.items():
        try:
            plan.extend(_launches(name, path, urls))
        except Mistake as mistake:
            problems.append(_problem(config, name, mistake))
    if repeated := repeated_name(launch.url for launch in plan):
        problems.append(f"MODEL_UPSTREAMS: two models are to listen at {repeated}; give each a port of its own")
    if problems:
        raise ConfigError(problems)
    return tuple(plan)


def _enabled_files(config: Config) -> tuple[dict[str, Path], list[str]]:
    llama = config.llama
    files, problems = _single_file(config)
    if llama.model_paths:
        files, problems = dict(llama.model_paths), []
    for name in llama.enabled:
        if files and name not in files:
            problems.append(f"ENABLED_MODELS: {name!r} is not in MODEL_PATHS; {did_you_mean(name, files)}")
    if llama.enabled:
        files = {name: path for name, path in files.items() if name in llama.enabled}
    return files, problems


def _single_file(config: Config) -> tuple[dict[str, Path], list[str]]:
    path = config.llama.model_path
    if path is None:
        right = "set MODEL_PATH=./models/x.gguf, or MODEL_PATHS=name=./models/x.gguf for each of MODEL_UPSTREAMS"
        return {}, [f"MODEL_PATH: no model file is named; {right}"]
    if not config.any_model:
        right = "with MODEL_UPSTREAMS set MODEL_PATHS=name=./models/x.gguf"
        return {}, [f"MODEL_PATH: it goes with LLAMA_BASE_URL, and models have names here; {right}"]
    return {config.models[0].name: path}, []


def _launches(name: str, path: Path, urls: Mapping[str, tuple[str, ...]]) -> Iterator[Launch]:
    if name not in urls:
        raise Mistake(f"{name!r} has no address in MODEL_UPSTREAMS", f"add {name}=http://127.0.0.1:8081 there")
    gguf.check(path)
    for url in urls[name]:
        _check_address(url)
        yield Launch(name, path, url)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.path or not is_loopback(parts.hostname or ""):
        right = "write e.g. http://127.0.0.1:8081, or take the model out of those to start"
        raise Mistake(f"{url} is not an address on this machine's loopback that a llama-server can listen at", right)


def _problem(config: Config, name: str, mistake: Mistake) -> str:
    setting = f"MODEL_PATHS, {name}" if config.llama.model_paths else "MODEL_PATH"
    return f"{setting}: {mistake.wrong}; {mistake.right}"
