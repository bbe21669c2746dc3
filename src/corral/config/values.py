"""Reads single values as files, environment and flags spell them; everything else is a ``Mistake``."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from corral.config.problems import Mistake, shown

# Eighteen digits fit 64 bits; more is a mistake, not a number.
WHOLE = re.compile(r"-?[0-9]{1,18}")

FLAGS = {"1": True, "true": True, "0": False, "false": False}

# What OpenAI clients send as ``model`` (``org/name:tag``), without what separates entries and names in settings.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")

# Pairs as they should look.
FILE_PAIR = "llama-8b=./models/llama-8b.gguf"
WEIGHT_PAIR = "team_a=2"

LEAST_WEIGHT = 0.01
MOST_WEIGHT = 1000.0


def whole_number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        return int(value)
    raise Mistake(f"{shown(value)} is not a whole number")


def flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    found = FLAGS.get(str(value).strip().lower()) if isinstance(value, (int, str)) else None
    if found is None:
        raise Mistake(f"{shown(value)} is neither true nor false", "write 1, 0, true or false")
    return found


def text(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise Mistake(f"{shown(value)} is not text")


def path(value: object) -> Path:
    """A path; ``~`` is the home directory, and a relative one counts from the working directory."""
    if isinstance(value, Path):
        return value
    return Path(text(value)).expanduser()


def words(value: object) -> tuple[str, ...]:
    """A list, or text whose entries are separated by commas."""
    if isinstance(value, str):
        return split(value)
    if isinstance(value, Sequence):
        return tuple(text(entry) for entry in value)
    raise Mistake(f"{shown(value)} is not a list")


def model_name(value: object) -> str:
    name = text(value)
    # Names are public: a URL that stands in the wrong place may hold a password.
    if not MODEL_NAME.fullmatch(name) or "://" in name:
        raise Mistake(
            f"{shown(name)} is not a model name",
            "use letters, digits and ._:/@+- and begin with a letter or digit, at most 128 characters",
        )
    return name


def paths_by_name(value: object) -> tuple[tuple[str, Path], ...]:
    """``name=path,…``, a mapping, or pairs; names occur once."""
    found = tuple((model_name(name), path(target)) for name, target in _pairs_of(value, FILE_PAIR))
    repeated = repeated_name(name for name, _ in found)
    if repeated is not None:
        raise Mistake(f"the name {shown(repeated)} stands there twice", "give each model a name of its own")
    return found


def weight(value: object) -> float:
    """A number above 0, and not so far from 1 that sums of it lose their digits."""
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except ValueError:
        found = 0.0
    if not LEAST_WEIGHT <= found <= MOST_WEIGHT:
        raise Mistake(f"{shown(value)} is not a weight", f"write a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return found


def weights_by_client(value: object) -> tuple[tuple[str, float], ...]:
    """``client=weight,…``, a mapping, or pairs; clients occur once."""
    found = tuple((text(name), weight(given)) for name, given in _pairs_of(value, WEIGHT_PAIR))
    repeated = repeated_name(name for name, _ in found)
    if repeated is not None:
        raise Mistake(f"the client {shown(repeated)} stands there twice", "give each client one weight")
    return found


def split(value: str) -> tuple[str, ...]:
    """The entries of a comma separated list, trimmed; an empty one is a mistake."""
    entries = tuple(entry.strip() for entry in value.split(","))
    if "" in entries:
        raise Mistake(f"entry {entries.index('') + 1} is empty", "remove the comma that is too much")
    return entries


def pair(entry: str, *, right: str) -> tuple[str, str]:
    """``name=target``; ``right`` is a pair as it should look.

    The target may hold a password by mistake: the message does not quote the entry.
    """
    name, _, target = (part.strip() for part in entry.partition("="))
    if not (name and target):
        raise Mistake("is not a pair NAME=VALUE", f"write e.g. {right}")
    return name, target


def repeated_name(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _pairs_of(value: object, right: str) -> Sequence[tuple[object, object]]:
    if isinstance(value, str):
        return [pair(entry, right=right) for entry in split(value)]
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, (list, tuple)) and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        return value
    raise Mistake(f"{shown(value)} is not a list of names and values", f"write e.g. {right}")
