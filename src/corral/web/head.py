"""What the parser does not mind in the head of a request, and RFC 9112 does."""

from typing import Any

import httptools

from corral.pipeline.answer import Headers

VERSIONS = ("1.1", "1.0")


def sound(headers: Headers, version: str) -> bool:
    """It can be read in one way only: its version (2.3), its hosts (3.2), and how its body is coded (6.1)."""
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if b"transfer-encoding" in names and not _chunked(headers):
        return False
    return version in VERSIONS and (hosts == 1 or (hosts == 0 and version == "1.0"))


def has_path(url: bytes) -> bool:
    """uvicorn can take it apart."""
    try:
        return bool(httptools.parse_url(url).path)
    except httptools.HttpParserInvalidURLError:
        return False


def size(url: bytes, headers: Headers) -> int:
    """Of the whole head, nearly: each header has a colon, a space and a line end besides."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def without_upgrade(parser: Any, url: bytes, headers: Headers) -> bytes:  # noqa: ANN401  (httptools has no types)
    """The head that the parser has read, as if it had not asked for another protocol."""
    line = b"%b %b HTTP/%b" % (parser.get_method(), url, parser.get_http_version().encode())
    kept = [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join((line, *kept, b"", b""))


def _chunked(headers: Headers) -> bool:
    return all(value.lower() == b"chunked" for name, value in headers if name == b"transfer-encoding")
