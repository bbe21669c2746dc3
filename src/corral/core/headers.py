"""What Corral reads from request headers and writes into reply headers, as bytes in ASGI's style."""

import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

Header = tuple[bytes, bytes]

# What may stand in a log line and in another header as it is: no spaces, no
# quotes, no line ends, and short enough to be an id.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")

_KEY_HEADERS = (b"authorization", b"x-api-key")

_MS_PER_MINUTE = 60_000
_MS_PER_HOUR = 60 * _MS_PER_MINUTE


def request_id(candidate: bytes | None, new: Callable[[], str]) -> str:
    """The client's own id where it is fit to be repeated, else ``req_`` and what ``new`` gives (32 hex digits)."""
    if candidate is not None and _REQUEST_ID.fullmatch(candidate):
        return candidate.decode("ascii")
    return "req_" + new()


def bearer(headers: Iterable[Header]) -> bytes | None:
    """The key of ``authorization: Bearer KEY`` or of ``x-api-key``; names are lower-case.

    None when there is none, and also when the request does not say which key
    it means: a header twice, or two different keys.
    """
    given = [header for header in headers if header[0] in _KEY_HEADERS]
    if len(given) == 1:
        name, value = given[0]
        return (_after_scheme(value) if name == b"authorization" else value.strip(b" \t")) or None
    if len(given) != len({name for name, _ in given}):
        return None
    keys = {_after_scheme(value) if name == b"authorization" else value.strip(b" \t") for name, value in given} - {b""}
    return keys.pop() if len(keys) == 1 else None


@lru_cache(maxsize=64)
def go_duration(seconds: float) -> str:
    """The text of a duration as Go and OpenAI write it (``120ms``, ``1.5s``, ``6m0s``), rounded up to a millisecond.

    Negative durations are ``0s``.
    """
    # The inner rounding takes away the noise of the product: 1.1 s is 1100 ms, not 1101.
    ms = math.ceil(round(max(seconds, 0.0) * 1000, 3))
    if ms == 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    hours, ms = divmod(ms, _MS_PER_HOUR)
    minutes, ms = divmod(ms, _MS_PER_MINUTE)
    parts = [f"{hours}h"] if hours else []
    if hours or minutes:
        parts.append(f"{minutes}m")
    return "".join([*parts, _seconds(ms)])


def _after_scheme(authorization: bytes) -> bytes:
    scheme, _, key = authorization.strip(b" \t").partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else b""


def _seconds(ms: int) -> str:
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03d}".rstrip("0") + "s" if rest else f"{whole}s"
