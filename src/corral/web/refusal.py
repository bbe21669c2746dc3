"""Answers that a connection gives by itself, where there is no exchange and no app to give them."""

import uuid

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from corral.core.errors import CorralError, HeadTooLarge, InvalidRequest
from corral.openai.errors import error_body, error_headers

INVALID_HTTP = "invalid_http"


def refusal(error: CorralError) -> bytes:
    """The last answer on a connection, in OpenAI's shape."""
    body = error_body(error)
    headers = (
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", b"req_" + uuid.uuid4().hex.encode()),
        *error_headers(error),
    )
    return b"".join((STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body))


def not_http() -> InvalidRequest:
    return InvalidRequest("this is not HTTP/1.1 as RFC 9112 defines it", code=INVALID_HTTP)


def head_too_large(limit_bytes: int) -> HeadTooLarge:
    return HeadTooLarge(f"the request's head is larger than {limit_bytes} bytes")
