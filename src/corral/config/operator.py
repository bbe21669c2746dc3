"""Where the commands that talk to a running Corral find the operator's key."""

from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from corral.config.load import DEFAULT_DOTENV
from corral.config.names import OPERATOR_KEY


def operator_key(env: Mapping[str, str], dotenv: Path = DEFAULT_DOTENV) -> str | None:
    """The key in the environment, else in .env; None when it is in neither."""
    try:
        written = dotenv_values(dotenv, interpolate=False) if dotenv.is_file() else {}
    except (OSError, UnicodeDecodeError):
        written = {}
    return env.get(OPERATOR_KEY) or written.get(OPERATOR_KEY) or None
