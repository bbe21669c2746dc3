"""Model files: the parts of a split one, the name a file gives its model, and what is wrong with a file."""

import re
from pathlib import Path

from corral.config.problems import Mistake
from corral.config.values import MODEL_NAME

# llama.cpp's split naming (llama_split_path): part 1 is given, the others are found beside it.
SPLIT = re.compile(r"-([0-9]{5})-of-([0-9]{5})$")

# The first bytes of every GGUF file (gguf.h, GGUF_MAGIC).
MAGIC = b"GGUF"


# A model that is made for embeddings says how it pools (llama.cpp: gguf-py constants, "{arch}.pooling_type").
# The keys of the architecture stand at the beginning, before megabytes of vocabulary.
POOLING_KEY = b".pooling_type"
HEAD_BYTES = 64 * 1024


def name_of(file: Path) -> str:
    """The model's name: the file's, in lower case, without ``.gguf`` and the number of its part."""
    stem = file.name.removesuffix(".gguf").removesuffix(".GGUF")
    name = re.sub(r"[^a-z0-9._:@+-]", "-", SPLIT.sub("", stem).lower()).lstrip("._:@+-")[:128]
    return name if MODEL_NAME.fullmatch(name) else "llama"


def check(file: Path) -> None:
    """Raise ``Mistake`` unless the file, with all its parts, is there and begins as a GGUF file does."""
    for part in parts_of(file):
        _check_part(part)


def made_for_embeddings(file: Path) -> bool:
    """Whether the model's file says how to pool; False for one that cannot be read."""
    try:
        with file.open("rb") as opened:
            return POOLING_KEY in opened.read(HEAD_BYTES)
    except OSError:
        return False


def parts_of(file: Path) -> tuple[Path, ...]:
    """All parts of a split file of which the first is given; the file alone when it is not split."""
    match = SPLIT.search(file.stem)
    number, count = (int(match[1]), int(match[2])) if match else (1, 0)
    if match is None or count == 0:
        return (file,)
    parts = tuple(
        file.with_name(f"{file.stem[: match.start()]}-{part:05d}-of-{count:05d}{file.suffix}")
        for part in range(1, count + 1)
    )
    if number != 1:
        raise Mistake(f"{file} is part {number} of a split model", f"give its first part, {parts[0]}")
    return parts


def _check_part(part: Path) -> None:
    try:
        with part.open("rb") as opened:
            start = opened.read(len(MAGIC))
    except FileNotFoundError:
        raise Mistake(
            f"there is no file {part}", "give the path of a GGUF file, or get one with 'corral pull'"
        ) from None
    except OSError as error:
        raise Mistake(f"{part} cannot be read ({error.strerror})", "give a file that Corral may read") from None
    if start != MAGIC:
        raise Mistake(f"{part} is not a GGUF file", "give a model in llama.cpp's format, whose name ends in .gguf")
