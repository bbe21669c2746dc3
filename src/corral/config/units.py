"""Durations and sizes with units: ``30s``, ``8MiB``."""

import math
import re
from decimal import Decimal

from corral.config.problems import Mistake, shown

SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}

# Timers of the event loop overflow somewhere beyond; nobody means more than a year.
LONGEST_S = 366 * 86400.0

# No sign and no exponent; the digits are bounded so that the text cannot make a huge number.
DIGITS = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
NUMBER = re.compile(rf"({DIGITS})\s*([a-z]*)")


def seconds(value: object) -> float:
    """Seconds from a number or from text with a unit (ms, s, m, h, d; none means seconds). Raises ``Mistake``."""
    if isinstance(value, str):
        found = _amount(value, SECONDS, default_unit="s", what="a duration", right="30s, 500ms, 5m, 1h")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        found = Decimal(repr(value))
    else:
        raise Mistake(f"{shown(value)} is not a duration", "write e.g. 30s, 500ms, 5m, 1h")
    if not 0 <= found <= Decimal(LONGEST_S):
        raise Mistake(f"{shown(value)} is not between 0 and 366 days", "write e.g. 30s, 500ms, 5m, 1h")
    return float(found)


def size(value: object) -> int:
    """Bytes from a whole number or from text with a unit (B, KB, MB, GB, KiB, MiB, GiB). Raises ``Mistake``."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str):
        raise Mistake(f"{shown(value)} is not a size", "write e.g. 32MiB, 500KB, 1048576")
    found = _amount(value, BYTES, default_unit="b", what="a size", right="32MiB, 500KB, 1048576")
    if found != found.to_integral_value():
        raise Mistake(f"{shown(value)} is not a whole number of bytes", "write e.g. 32MiB, 500KB, 1048576")
    return int(found)


def format_seconds(value: float) -> str:
    """The text that ``seconds`` reads back as ``value``."""
    return f"{Decimal(repr(value)).normalize():f}s"


def format_size(value: int) -> str:
    """The text that ``size`` reads back as ``value``, in the largest unit that divides it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value}B"


def _amount(
    text: str, units: dict[str, Decimal] | dict[str, int], *, default_unit: str, what: str, right: str
) -> Decimal:
    match = NUMBER.fullmatch(text.strip().lower())
    factor = units.get(match[2] or default_unit) if match else None
    if match is None or factor is None:
        raise Mistake(f"{shown(text)} is not {what}", f"write e.g. {right}")
    return Decimal(match[1]) * factor
