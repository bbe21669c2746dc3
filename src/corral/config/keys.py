"""API keys: hashed as soon as they are read, and told apart by the client they belong to."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, Field

from corral.config.names import CLIENT_KEY, CLIENT_KEYS, CLIENT_KEYS_FILE, OPERATOR_KEY
from corral.config.problems import Given, Layer, Mistake, Problems
from corral.config.values import path

DEFAULT_CLIENT = "default"
OPERATOR_CLIENT = "operator"

# What an HTTP header can carry and a list can hold.
KEY = re.compile(r"[\x21-\x7e]+")
CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")

# A public id made from a key must not be a part of the digest that the key is compared with.
CLIENT_DOMAIN = b"corral client id\0"


class ApiKey(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """A key by its SHA-256; ``client`` is the name its owner goes by in limits, metrics and logs."""

    digest: bytes = Field(repr=False, exclude=True)
    client: str
    operator: bool = False


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key and where it was found; ``place`` completes a message and holds nothing of the key."""

    key: ApiKey
    given: Given
    place: str


def key_digest(key: str) -> bytes:
    """The form in which keys are kept and compared."""
    return hashlib.sha256(key.encode()).digest()


def generated_client(key: str) -> str:
    """The client id of a key that was given without one; the same for the same key, always."""
    return "client-" + hashlib.sha256(CLIENT_DOMAIN + key.encode()).hexdigest()[:8]


def read_keys(layer: Layer, problems: Problems) -> tuple[FoundKey, ...]:
    """All keys of the merged settings. No message ever holds a key: entries and lines are named by their number."""
    found: dict[bytes, FoundKey] = {}
    for candidate in _candidates(layer, problems):
        first = found.setdefault(candidate.key.digest, candidate)
        if first is not candidate:
            wrong = f"{candidate.place} is the same key as {first.place} of {first.given.name}"
            problems.add(candidate.given, wrong, "give each client a key of its own")
    return tuple(found.values())


def parse_entry(entry: str) -> tuple[str, str]:
    """``KEY[:CLIENT]`` as key and client id. Raises ``Mistake``, which holds nothing of the entry."""
    key, colon, client = (part.strip() for part in entry.strip().partition(":"))
    if not key:
        raise Mistake("holds no key", "write KEY or KEY:CLIENT")
    _check_key(key)
    if not colon:
        return key, generated_client(key)
    if not CLIENT.fullmatch(client):
        raise Mistake(
            "has a client id that is not one", "write KEY:CLIENT, the client in 1 to 64 letters, digits and ._-"
        )
    return key, client


def _candidates(layer: Layer, problems: Problems) -> Iterator[FoundKey]:
    if given := layer.get(CLIENT_KEY):
        yield from _whole(given, DEFAULT_CLIENT, problems)
    if given := layer.get(CLIENT_KEYS):
        yield from _entries(given, "entry", str(given.value).split(","), problems)
    if given := layer.get(CLIENT_KEYS_FILE):
        yield from _entries(given, "line", _lines(given, problems), problems)
    if given := layer.get(OPERATOR_KEY):
        yield from _whole(given, OPERATOR_CLIENT, problems)


def _whole(given: Given, client: str, problems: Problems) -> Iterator[FoundKey]:
    key = str(given.value).strip()
    try:
        _check_key(key)
    except Mistake as mistake:
        problems.add(given, f"the key {mistake.wrong}", str(mistake.right))
        return
    operator = client == OPERATOR_CLIENT
    yield FoundKey(ApiKey(digest=key_digest(key), client=client, operator=operator), given, "the key")


def _entries(given: Given, kind: str, entries: list[str], problems: Problems) -> Iterator[FoundKey]:
    """Keys with their client ids; in a file (``kind`` is ``line``) empty lines and ``#`` comments are no entries."""
    for number, entry in enumerate(entries, start=1):
        if kind == "line" and not _content(entry):
            continue
        place = f"{kind} {number}"
        try:
            key, client = parse_entry(_content(entry) if kind == "line" else entry)
        except Mistake as mistake:
            problems.add(given, f"{place} {mistake.wrong}", str(mistake.right))
            continue
        yield FoundKey(ApiKey(digest=key_digest(key), client=client), given, place)


def _content(line: str) -> str:
    """A line of a key file without its comment, which begins the line or follows a space."""
    return re.sub(r"(^|\s)#.*", "", line).strip()


def _lines(given: Given, problems: Problems) -> list[str]:
    try:
        # A byte order mark would become part of the first key.
        lines = path(given.value).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        problems.add(given, "the file is not UTF-8 text", "write one KEY[:CLIENT] a line")
        return []
    except OSError as error:
        problems.add(given, f"the file cannot be read ({error.strerror})", "give a file with one KEY[:CLIENT] a line")
        return []
    if not any(_content(line) for line in lines):
        problems.add(given, "the file holds no key", "write one KEY[:CLIENT] a line")
    return lines


def _check_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise Mistake("holds a space or a character that an HTTP header cannot carry", "use visible ASCII characters")
