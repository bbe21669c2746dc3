"""What both sources of model files need: checksums and a progress bar."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

BLOCK_BYTES = 1 << 20


def progress_bar(console: Console) -> Progress:
    """A bar that counts bytes; gone from the screen when it is done, and never in a log."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def copy(source: BinaryIO, target: BinaryIO, on_bytes: Callable[[int], None]) -> None:
    """Append the rest of ``source`` to ``target``, telling the size of each block."""
    while block := source.read(BLOCK_BYTES):
        target.write(block)
        on_bytes(len(block))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(path: Path, size: int, sha256: str | None) -> bool:
    """Whether the file is there with this size and, where one is known, this checksum."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    return sha256 is None or sha256_of(path) == sha256
