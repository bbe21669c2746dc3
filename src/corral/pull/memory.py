"""What was fetched under which name, so that nobody need be asked for it again. One writer: ``pull``."""

import json
from pathlib import Path

from corral.config import gguf
from corral.config.problems import Mistake

NAME = "pulled.json"


def remember(what: str, file: Path, into: Path) -> None:
    """Write down that ``what`` is ``file``, a file in ``into``."""
    draft = (into / NAME).with_suffix(".new")
    draft.write_text(json.dumps(_read(into) | {what: str(file.relative_to(into))}, indent=1) + "\n")
    draft.replace(into / NAME)


def remembered(what: str, into: Path) -> Path | None:
    """The file of ``what``, if it was fetched and is still there, with all its parts."""
    name = _read(into).get(what)
    if name is None:
        return None
    try:
        gguf.check(into / name)
    except Mistake:
        return None
    return into / name


def _read(into: Path) -> dict[str, str]:
    try:
        told = json.loads((into / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return {what: name for what, name in told.items() if isinstance(name, str)} if isinstance(told, dict) else {}
