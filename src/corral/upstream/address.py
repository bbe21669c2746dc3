"""Where an upstream listens."""

import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
# What may stand in a request line: a prefix goes there as it is.
VISIBLE = re.compile(r"[!-~]+")


class Address(NamedTuple):
    """Host and port of an upstream, and the path in front of its ``/v1``.

    ``str()`` gives ``host:port``, as the ``Host`` header has it. It is for
    operators: clients never see it. (A tuple, as its hash is asked for several
    times in each exchange.)
    """

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read ``http(s)://host[:port][/prefix]``; raises ValueError, saying what is wrong.

        A ``/v1`` at the end is taken off, because OpenAI's SDKs want it in a
        base URL and so many people write it.
        """
        if not VISIBLE.fullmatch(url):
            raise ValueError("an upstream URL must not be empty or hold spaces, control or non-ASCII characters")
        parts = urlsplit(url)
        _refuse_other_parts(parts)
        return cls(
            host=_host(parts),
            port=_port(parts),
            tls=parts.scheme == "https",
            prefix=parts.path.rstrip("/").removesuffix("/v1").rstrip("/"),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _refuse_other_parts(parts: SplitResult) -> None:
    # The URL is not repeated in these messages: it may hold a password.
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError("an upstream URL begins with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("an upstream URL must not hold a user name or password")
    if parts.query or parts.fragment:
        raise ValueError("an upstream URL ends with its path: no '?' and no '#'")


def _host(parts: SplitResult) -> str:
    host = parts.hostname
    if not host:
        raise ValueError("an upstream URL needs a host, as in http://127.0.0.1:8080")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"'{host}' is not a host name") from None
    return host


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return DEFAULT_PORTS[parts.scheme]
    if port == 0:
        raise ValueError("the port of an upstream URL must be between 1 and 65535")
    return port
