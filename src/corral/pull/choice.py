"""Which GGUF files of a repository are meant: a pure rule over the list of its files."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from corral.core.errors import PullError

# What most people run: the best quality for its size (llama.cpp, tools/quantize/README.md).
PREFERRED = "Q4_K_M"

# "model-00001-of-00003.gguf": llama.cpp's naming of split files (gguf-split).
SPLIT = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$")

# The names that llama.cpp gives to quantisations, wherever people put them in a file's name.
QUANT = re.compile(
    r"(?<![^-._/])((?:UD-)?(?:I?Q[1-8](?:_[0-9A-Z]+)*|TQ[12]_0|BF16|F16|F32|MXFP4(?:_MOE)?))(?![^-._])", re.IGNORECASE
)

# Not models to serve: the image part of a multimodal model, and calibration data.
COMPANIONS = ("mmproj", "imatrix")

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for: a repository, and a quantisation or a file of it, or neither."""

    repository: str
    quant: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; ``sha256`` is None for the small ones that are kept in git itself."""

    path: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One model: a single file, or all files of a split one in their order."""

    # The path without ".gguf" and without the number of the split.
    stem: str
    files: tuple[RemoteFile, ...]

    @property
    def quant(self) -> str:
        """The quantisation in the name, in capitals; empty when it has none."""
        found = QUANT.findall(self.stem)
        return str(found[-1]).upper() if found else ""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def parse(what: str, *, known: Iterable[str]) -> Wanted:
    """Read ``[hf:]ORG/REPO``, ``ORG/REPO:QUANT`` or ``ORG/REPO/FILE.gguf``; raises PullError."""
    place, _, quant = what.removeprefix("hf:").partition(":")
    organisation, repository, path = (*place.split("/", 2), "", "")[:3]
    named = f"{organisation}/{repository}"
    if not REPOSITORY.fullmatch(named) or (path and not path.endswith(".gguf")) or (path and quant):
        raise PullError(
            f"no model is called '{what}'; say one of: {', '.join(known)}, or a repository on Hugging Face as "
            "ORG/REPO, ORG/REPO:QUANT or ORG/REPO/FILE.gguf"
        )
    return Wanted(named, quant or None, path or None)


def choose(files: Iterable[RemoteFile], wanted: Wanted) -> Variant:
    """The one model that is meant; raises PullError listing what there is when that is not clear."""
    variants = group(files)
    if not variants:
        raise PullError(f"'{wanted.repository}' has no GGUF files; look for a repository with GGUF in its name")
    fitting = [variant for variant in variants if _fits(variant, wanted)]
    if len(fitting) > 1 and wanted.quant is None:
        fitting = [variant for variant in fitting if variant.quant == PREFERRED] or fitting
    if len(fitting) == 1:
        return fitting[0]
    raise PullError(_unclear(wanted, fitting or variants, found=bool(fitting)))


def group(files: Iterable[RemoteFile]) -> list[Variant]:
    """The models among the files, the smallest first."""
    stems: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if _is_model(file):
            stems.setdefault(SPLIT.sub("", file.path.removesuffix(".gguf")), []).append(file)
    variants = [Variant(stem, tuple(parts)) for stem, parts in stems.items()]
    return sorted(variants, key=lambda variant: (variant.bytes, variant.stem))


def _is_model(file: RemoteFile) -> bool:
    name = file.path.rpartition("/")[2].lower()
    return name.endswith(".gguf") and not any(word in name for word in COMPANIONS)


def _fits(variant: Variant, wanted: Wanted) -> bool:
    if wanted.path is not None:
        return wanted.path in [file.path for file in variant.files]
    return wanted.quant is None or variant.quant == wanted.quant.upper()


def check_complete(variant: Variant) -> None:
    """Raise PullError when a file of a split model is missing in the repository."""
    split = SPLIT.search(variant.files[0].path.removesuffix(".gguf"))
    if split is not None and int(split["count"]) != len(variant.files):
        raise PullError(f"'{variant.stem}' is split into {int(split['count'])} files, {len(variant.files)} are there")


def _unclear(wanted: Wanted, variants: Sequence[Variant], *, found: bool) -> str:
    asked = wanted.quant or wanted.path
    if asked and not found:
        head = f"'{wanted.repository}' has no '{asked}'; it has:"
    else:
        head = f"'{wanted.repository}' has {len(variants)} models; say which:"
    quants = [variant.quant for variant in variants]
    lines = [f"  {_door(wanted, variant, quants)}   {variant.bytes / 1e9:.2f} GB" for variant in variants]
    return "\n".join([head, *lines])


def _door(wanted: Wanted, variant: Variant, quants: Sequence[str]) -> str:
    """What to type for this variant: its quantisation where that says enough, else its file."""
    if variant.quant and quants.count(variant.quant) == 1:
        return f"{wanted.repository}:{variant.quant}"
    return f"{wanted.repository}/{variant.files[0].path}"
