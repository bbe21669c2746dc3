"""What kinds of values settings have, each with the way it is read."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr

from corral.config import units, urls, values
from corral.config.keys import KEY
from corral.config.problems import Mistake

# As SQLAlchemy reads it, and with a port that is one.
POSTGRES_URL = re.compile(
    r"postgres(?:ql)?://(?:[^:/]*(?::[^@]*)?@)?(?:\[[^/?]+\]|[^/:?]+)?(?::\d{1,5})?(?:/[^?]*)?(?:\?(?P<options>.*))?"
)
# What asyncpg takes as text.
POSTGRES_OPTIONS = frozenset({"host", "passfile", "service", "servicefile", "ssl", "sslmode", "target_session_attrs"})
ESCAPES = "in a password, / # ? @ : [ are %2F %23 %3F %40 %3A %5B"

# Numbers end up as C ints in llama.cpp.
Count = Annotated[int, BeforeValidator(values.whole_number), Field(ge=0, le=2**31 - 1)]
Positive = Annotated[int, BeforeValidator(values.whole_number), Field(ge=1, le=2**31 - 1)]
Port = Annotated[int, BeforeValidator(values.whole_number), Field(ge=0, le=65535)]
Flag = Annotated[bool, BeforeValidator(values.flag)]
Duration = Annotated[float, BeforeValidator(units.seconds), Field(ge=0)]
PositiveDuration = Annotated[float, BeforeValidator(units.seconds), Field(gt=0)]
Size = Annotated[int, BeforeValidator(units.size), Field(ge=1)]
Price = Annotated[float, Field(ge=0)]
Weight = Annotated[float, Field(gt=0, le=1000)]
Text = Annotated[str, BeforeValidator(values.text)]
Words = Annotated[tuple[str, ...], BeforeValidator(values.words)]
FilePath = Annotated[Path, BeforeValidator(values.path)]
PathsByName = Annotated[tuple[tuple[str, Path], ...], BeforeValidator(values.paths_by_name)]
Weights = Annotated[tuple[tuple[str, float], ...], BeforeValidator(values.weights_by_client)]
ModelName = Annotated[str, BeforeValidator(values.model_name)]
ModelNames = Annotated[tuple[ModelName, ...], BeforeValidator(values.words)]
Host = Annotated[str, BeforeValidator(urls.bind_host)]
Origin = Annotated[str, BeforeValidator(urls.origin)]
Origins = Annotated[tuple[Origin, ...], BeforeValidator(values.words)]
Url = Annotated[str, BeforeValidator(urls.upstream_url)]
Urls = Annotated[tuple[Url, ...], BeforeValidator(values.words)]


def _word(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _sendable(secret: SecretStr) -> SecretStr:
    if not KEY.fullmatch(secret.get_secret_value()):
        raise Mistake(
            "the key holds a space or a character that an HTTP header cannot carry", "use visible ASCII characters"
        )
    return secret


def _database(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    right = "write postgresql://USER:PASSWORD@HOST/NAME; for SQLite set store.file instead"
    if not text.startswith(("postgresql://", "postgres://")):
        raise Mistake("the URL is not one of PostgreSQL", right)
    read = POSTGRES_URL.fullmatch(text)
    if read is None:
        raise Mistake("the URL cannot be read", f"{right}; {ESCAPES}")
    if not {name for name, _ in parse_qsl(read["options"] or "")} <= POSTGRES_OPTIONS:
        raise Mistake(
            "the URL has options that are not known", f"use no others than {', '.join(sorted(POSTGRES_OPTIONS))}"
        )
    return secret


def _valkey(secret: SecretStr) -> SecretStr:
    text, right = secret.get_secret_value(), "write redis://:PASSWORD@HOST:6379/0"
    if not text.startswith(("redis://", "rediss://", "valkey://", "valkeys://", "unix://")):
        raise Mistake("the URL is not one of Valkey or Redis", right)
    try:
        # Else who connects would say what stands where a port is to be, which may be a part of the password.
        _ = urlsplit(text).port
    except ValueError:
        raise Mistake("the URL cannot be read", f"{right}; {ESCAPES}") from None
    return secret


def _content(value: object) -> object:
    """The secret in a file."""
    if isinstance(value, SecretStr):
        return value
    file = values.path(value)
    try:
        return SecretStr(file.read_text(encoding="utf-8-sig").strip())
    except (OSError, UnicodeDecodeError):
        raise Mistake(f"{file} cannot be read", "give a file that holds the key and nothing else") from None


Level = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_word)]
BalanceName = Annotated[Literal["prefix", "least_busy", "round_robin", "sticky"], BeforeValidator(_word)]
Away = Annotated[Literal["refuse", "share"], BeforeValidator(_word)]
LimitName = Annotated[
    Literal["requests", "tokens", "in_flight", "tokens_day", "tokens_month", "max_tokens", "max_context"],
    BeforeValidator(_word),
]
LimitNames = Annotated[tuple[LimitName, ...], BeforeValidator(values.words)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database)]
ValkeyUrl = Annotated[SecretStr, AfterValidator(_valkey)]
Secret = Annotated[SecretStr, AfterValidator(_sendable)]
SecretInFile = Annotated[SecretStr, BeforeValidator(_content), AfterValidator(_sendable)]


class Section(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True):
    """Settings that belong together."""
