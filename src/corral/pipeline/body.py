"""The limits on a request's body, whichever door it comes in by."""

from corral.core.errors import BodyTimeout, BodyTooLarge
from corral.pipeline.answer import Headers


def ensure_declared(headers: Headers, limit_bytes: int) -> None:
    """Refuse a body by its declared length, before a byte of it is read; raises BodyTooLarge."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise too_large(limit_bytes)


def too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request's body is larger than the limit of {limit_bytes} bytes")


def too_slow(limit_s: float) -> BodyTimeout:
    return BodyTimeout(f"the request's body did not arrive within {limit_s:g} s")
