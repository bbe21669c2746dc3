"""What was given and by whom, and the list of what is wrong with it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

# Enough of a wrong value to recognise it, and not a whole pasted file.
SHOWN_CHARACTERS = 60

CREDENTIALS = re.compile(r"://[^/]*@")

FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as the operator gave it; the value may be a secret and stays out of the repr.

    ``name`` is the name the operator used (``LLAMA_CTX``, ``server.port``),
    ``source`` says where (``environment``, ``.env line 3``, ``corral.yaml line 7``, ``flag``),
    ``part`` which entry of a list is meant.
    """

    name: str
    source: str
    value: object = field(repr=False)
    part: str = ""

    def spell(self, value: str) -> str:
        """How the same setting is written with another value, in the syntax of its source."""
        if self.source == FLAG:
            return value
        return f"{self.name}={value}" if self.name.isupper() else f"{self.name.rsplit('.', 1)[-1]}: {value}"


# What one source, or all of them together, said: by setting path, or by name for what is no single setting.
Layer = Mapping[str, Given]


class Mistake(ValueError):
    """A value is wrong; ``right`` says what would do, or is None where an example of the setting says it."""

    def __init__(self, wrong: str, right: str | None = None) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.right = right


class Problems:
    """Everything wrong with a configuration, in the order it was found; written by ``load`` and its readers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, given: Given, wrong: str, right: str) -> None:
        part = f", {given.part}" if given.part else ""
        self.lines.append(f"{given.name} ({given.source}{part}): {wrong}; {right}")


def shown(value: object) -> str:
    """A wrong value as messages quote it; not for values that are secrets."""
    text = repr(value)
    # A URL that strayed into another setting may hold a password.
    if CREDENTIALS.search(text):
        return "the value"
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that was most likely meant: a similar one, or the only one with the same last part."""
    names = list(valid)
    similar = get_close_matches(name, names, n=1, cutoff=0.75)
    if similar:
        return similar[0]
    leaf = name.rsplit(".", 1)[-1]
    same_leaf = [candidate for candidate in names if candidate.rsplit(".", 1)[-1] == leaf]
    if len(same_leaf) == 1:
        return same_leaf[0]
    similar = get_close_matches(name, names, n=1)
    return similar[0] if similar else None


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """What would be right in place of an unknown name."""
    found = nearest(name, valid)
    return f"did you mean {found}?" if found else "docs/configuration.md lists every setting"
