"""The files that settings are read from, and whether they have changed since."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from corral.config import values
from corral.config.names import CLIENT_KEYS_FILE, MODELS
from corral.config.problems import Given, Layer, Mistake

# What changes with whatever is done to a file, also when another takes its name; None where there is none.
Mark = tuple[int, int, int] | None
Marks = Mapping[Path, Mark]


class Files:
    """The files that the settings in force, or those that were refused last, came from. Writer: ``load``.

    ``read`` has the marks from just before they were read, also of those that were not there.
    """

    def __init__(self) -> None:
        self.read: Marks = {}


def marks_of(paths: Iterable[Path]) -> dict[Path, Mark]:
    """What the files look like now."""
    return {path: _mark(path) for path in paths}


def to_be_read(read: Marks, before: Marks, now: Marks) -> bool:
    """Whether files have changed since they were read, and are whole.

    They are when nothing has changed since the look ``before``, and none has
    gone: an editor that takes a file away is about to put another there.
    """
    gone = any(mark is None and read.get(path) is not None for path, mark in now.items())
    return now != read and now == before and not gone


def files_named(layer: Layer) -> Iterator[Path]:
    """The files that settings name and that are read with them: those of keys."""
    names = [given.value for given in (layer.get(CLIENT_KEYS_FILE),) if given]
    for name in (*names, *_upstream_key_files(layer)):
        try:
            yield values.path(name)
        except Mistake:
            # Whoever reads the setting says so.
            continue


def _upstream_key_files(layer: Layer) -> Iterator[object]:
    models = layer.get(MODELS)
    for model in models.value if models and isinstance(models.value, tuple) else ():
        remote = model.value.get("remote") if isinstance(model.value, dict) else None
        yield from _key_files(remote) if remote else ()


def _key_files(remote: Given) -> Iterator[object]:
    entries = remote.value if isinstance(remote.value, list) else [remote.value]
    return (entry["key_file"] for entry in entries if isinstance(entry, dict) and "key_file" in entry)


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_ctime_ns
