"""What has to be known of redis-py: how it is told where to go, how it fails, and where it loses a cancellation."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

# Valkey's own names of its schemes, which the library does not know.
SCHEMES = {"valkey://": "redis://", "valkeys://": "rediss://"}
# What a connection fails with. (uvloop says RuntimeError of one that is closed already; the last four are what
# the library makes of answers that no Valkey gives, or not to this.)
FAULTS = (RedisError, OSError, TimeoutError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
# Who does so is not asked again at once.
STALLS = (TimeoutError, RedisTimeoutError)


def connecting(url: str, timeout_s: float, answer_timeout_s: float | None) -> Redis:
    """A client that has not connected yet, and tries nothing twice: what was sent may have been done."""
    return Redis.from_url(
        plain(url),
        socket_connect_timeout=timeout_s,
        socket_timeout=answer_timeout_s,
        retry=Retry(NoBackoff(), 0),
        max_connections=1,
    )


def connecting_to_cluster(url: str, timeout_s: float) -> RedisCluster:
    return RedisCluster.from_url(
        plain(url), socket_connect_timeout=timeout_s, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )


def plain(url: str) -> str:
    """In the words of redis-py."""
    for own, known in SCHEMES.items():
        if url.startswith(own):
            return known + url.removeprefix(own)
    return url


def told(error: BaseException) -> str:
    """What kind of error it is; of the server's own words the first, which is a code: the rest may hold anything."""
    kind = type(error).__name__
    code = str(error).partition(" ")[0]
    return f"{kind} {code}" if code.isupper() and code.isalpha() else kind


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """The library writes with asyncio.wait_for, which loses a cancellation of that very moment (Python 3.11)."""
    task = asyncio.current_task()
    cancelled = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > cancelled:
            raise asyncio.CancelledError
