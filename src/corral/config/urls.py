"""What is a URL of a llama-server, a CORS origin, a host on loopback."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from corral.config.problems import Mistake, shown

RIGHT_URL = "write e.g. http://127.0.0.1:8080"
RIGHT_ORIGIN = "write scheme://host[:port], e.g. https://app.example.org, or * for every origin"

# A name, an IPv4 address, or an IPv6 address in brackets, without what would begin another part of a URL.
HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
AUTHORITY = re.compile(rf"{HOST}(?::[0-9]{{1,5}})?")
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{HOST}(?::[0-9]{{1,5}})?", re.IGNORECASE)
BIND_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def upstream_url(value: object) -> str:
    """A llama-server's base URL: http or https, a host, perhaps a path prefix; without the slash at its end.

    Messages quote the value only where it cannot hold a password or token.
    """
    if not isinstance(value, str):
        raise Mistake(f"{shown(value)} is not a URL", RIGHT_URL)
    _refuse_secrets(value)
    url = _split(value.strip())
    if url.scheme not in ("http", "https"):
        raise Mistake(f"{shown(value)} does not begin with http:// or https://", RIGHT_URL)
    if not AUTHORITY.fullmatch(url.netloc) or not _good_address(url):
        raise Mistake(f"{shown(value)} has no valid host and port", RIGHT_URL)
    prefix = url.path.rstrip("/")
    if not PREFIX.fullmatch(prefix):
        raise Mistake(f"{shown(value)} has a path that is no prefix", "write e.g. http://127.0.0.1:8080/prefix")
    if prefix.endswith("/v1"):
        raise Mistake(f"{shown(value)} ends in /v1, which Corral adds itself", "leave /v1 out")
    return f"{url.scheme}://{url.netloc}{prefix}"


def origin(value: object) -> str:
    """An origin as a browser sends it (RFC 6454): lower case, without the default port; or ``*``."""
    if value == "*":
        return "*"
    if not isinstance(value, str) or not ORIGIN.fullmatch(value) or not _good_address(_split(value)):
        raise Mistake(f"{shown(value)} is not an origin", RIGHT_ORIGIN)
    found = value.lower()
    return found.removesuffix(DEFAULT_PORTS.get(_split(found).scheme, ""))


def bind_host(value: object) -> str:
    """An address or host name to listen on."""
    if isinstance(value, str) and _good_host(value) and (":" in value or BIND_HOST.fullmatch(value)):
        return value
    raise Mistake(f"{shown(value)} is neither an address nor a host name", "write e.g. 127.0.0.1, ::1 or 0.0.0.0")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. Other names than localhost are not resolved and count as no."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _refuse_secrets(value: str) -> None:
    if "@" in value:
        raise Mistake("the URL holds a user name or password", f"{RIGHT_URL}, and the upstream's key in LLAMA_API_KEY")
    if "?" in value or "#" in value:
        raise Mistake("the URL has a query or a fragment", f"{RIGHT_URL}, without anything after ? or #")


def _split(value: str) -> SplitResult:
    try:
        return urlsplit(value)
    except ValueError:
        raise Mistake(f"{shown(value)} is not a URL", RIGHT_URL) from None


def _good_address(url: SplitResult) -> bool:
    try:
        port = url.port
    except ValueError:
        return False
    return port != 0 and _good_host(url.hostname or "")


def _good_host(host: str) -> bool:
    """What looks like an address must be one: 127.0.0.256 is no host name."""
    numeric = ":" in host or re.fullmatch(r"[0-9.]+", host) is not None
    return not numeric or _address(host) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
