"""What the parser does not mind in the head of a request, and RFC 9112 does."""

from typing import Any

import httptools

from corral.core.errors import CorralError
from corral.pipeline.answer import Headers
from corral.web.refusal import head_too_large, not_http

# nginx takes 32 KiB, llama-server 8 KiB a line. It holds as well for what frames a body: extensions, trailers.
LIMIT_BYTES = 64 * 1024
VERSIONS = ("1.1", "1.0")


def fault(url: bytes, headers: Headers, version: str, *, may_be_long: bool) -> CorralError | None:
    """Why a request with this head cannot be served; ``may_be_long`` when its bytes were not all counted."""
    if may_be_long and _size(url, headers) > LIMIT_BYTES:
        return head_too_large(LIMIT_BYTES)
    return None if _sound(headers, version) else not_http()


def has_path(url: bytes) -> bool:
    """uvicorn can take it apart."""
    try:
        return bool(httptools.parse_url(url).path)
    except httptools.HttpParserInvalidURLError:
        return False


def without_upgrade(parser: Any, url: bytes, headers: Headers) -> bytes:  # noqa: ANN401  (httptools has no types)
    """The head that the parser has read, as if it had not asked for another protocol."""
    line = b"%b %b HTTP/%b" % (parser.get_method(), url, parser.get_http_version().encode())
    kept = [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join((line, *kept, b"", b""))


def _sound(headers: Headers, version: str) -> bool:
    """It can be read in one way only: its version (2.3), its hosts (3.2), and how its body is coded (6.1)."""
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if b"transfer-encoding" in names and not _chunked(headers):
        return False
    return version in VERSIONS and (hosts == 1 or (hosts == 0 and version == "1.0"))


def _size(url: bytes, headers: Headers) -> int:
    """Of the whole head, nearly: each header has a colon, a space and a line end besides."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def _chunked(headers: Headers) -> bool:
    return all(value.lower() == b"chunked" for name, value in headers if name == b"transfer-encoding")
