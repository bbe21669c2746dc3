"""An exception as one field of a log line."""

import traceback
from typing import Any

from corral.core.errors import CorralError

# Causes of causes, and members of groups of groups.
MAX_DEPTH = 5
MAX_MEMBERS = 10

# The innermost frames; an endless recursion has a thousand.
MAX_FRAMES = 30


def describe(error: BaseException, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Type, stack, and what it came from.

    The message is told only where we know who wrote it: our own errors and the
    operating system's. Others quote what they were given (Pydantic, ``int()``,
    ``KeyError``), which can be a prompt or a key; the stack shows the line
    that failed all the same.
    """
    told: dict[str, Any] = {"type": type(error).__qualname__}
    if isinstance(error, CorralError | OSError):
        told["message"] = str(error)
    told["stack"] = [
        f"{frame.filename}:{frame.lineno} {frame.name}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__, limit=-MAX_FRAMES)
    ]
    if depth > 0:
        told.update(_origins(error, depth - 1))
    return told


def _origins(error: BaseException, depth: int) -> dict[str, Any]:
    origins: dict[str, Any] = {}
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        origins["cause"] = describe(cause, depth)
    if isinstance(error, BaseExceptionGroup):
        origins["members"] = [describe(member, depth) for member in error.exceptions[:MAX_MEMBERS]]
    return origins
