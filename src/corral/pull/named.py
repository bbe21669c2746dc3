"""Settings whose models are all there: what names a repository is fetched before anything starts."""

from pathlib import Path

from rich.console import Console

from corral.config import Config, ModelSettings
from corral.core.errors import ConfigError
from corral.pull import PullError, pull
from corral.pull.memory import remembered

MODELS = Path("models")


def fetched(config: Config, console: Console, into: Path = MODELS) -> Config:
    """The settings with a file for each model that names what to fetch; raises ConfigError where that cannot be had.

    What was fetched once is there without asking anybody.
    """
    models = tuple(_with_file(model, console, into) for model in config.models)
    return config if models == config.models else config.model_copy(update={"models": models})


def _with_file(model: ModelSettings, console: Console, into: Path) -> ModelSettings:
    if model.hf is None:
        return model
    try:
        file = remembered(model.hf, into) or pull(model.hf, into, console)
    except PullError as error:
        # Whoever reloads settings is told of it as of any that are wrong, and goes on with those in force.
        raise ConfigError([f"the model '{model.name}', hf: {error.message}"]) from error
    return model.model_copy(update={"file": file.resolve()})
