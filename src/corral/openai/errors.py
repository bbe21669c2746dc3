"""Errors on the wire: ours in OpenAI's shape, and llama-server's read into our own."""

import math

import orjson

from corral.core.errors import CorralError, RateLimited, Unauthorized, Unsupported, UpstreamTimeout
from corral.openai.upstream_errors import upstream_error, upstream_event_error

__all__ = ["error_body", "error_event", "error_headers", "upstream_error", "upstream_event_error"]

Headers = list[tuple[bytes, bytes]]


def error_body(error: CorralError) -> bytes:
    """``{"error": {…}}`` with all four keys, as OpenAI's clients expect."""
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return orjson.dumps({"error": fields})


def error_event(error: CorralError) -> bytes:
    """The error as an event in a stream that has begun; nothing, and no ``[DONE]``, comes after it."""
    return b"data: " + error_body(error) + b"\n\n"


def error_headers(error: CorralError) -> Headers:
    """What tells a client whether and when to come back; without content type and length."""
    headers: Headers = []
    if error.retry_after_s is not None:
        # Clients read the milliseconds first. A Retry-After of 0 would be ignored.
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after_s * 1000))))
    if _retry_is_vain(error):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RateLimited):
        headers.extend(error.headers)
    return headers


def _retry_is_vain(error: CorralError) -> bool:
    """OpenAI's clients repeat 429 and every status from 500 on; these would fail again."""
    if isinstance(error, RateLimited):
        return error.vain
    return isinstance(error, Unsupported) or (isinstance(error, UpstreamTimeout) and error.phase == "total")
