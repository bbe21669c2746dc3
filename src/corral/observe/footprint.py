"""What this process is and what it takes of the machine, on Linux and macOS."""

import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from corral import __version__
from corral.observe.readings import Instrument, Reading, Source

# getrusage counts kilobytes, but bytes on macOS.
_MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def footprint() -> Source:
    """The readings of this process; its start is the moment of this call."""
    build = Reading(Instrument.BUILD, 1.0, (__version__, platform.python_version()))
    start = Reading(Instrument.START_TIME, time.time())

    def read() -> Iterator[Reading]:
        yield build
        yield start
        yield Reading(Instrument.CPU, time.process_time())
        yield from _memory()
        yield from _descriptors()

    return read


def _memory() -> Iterator[Reading]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield Reading(Instrument.PEAK_MEMORY, peak * _MAXRSS_UNIT_BYTES)
    # Only Linux tells without a library of its own how much it is now.
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        yield Reading(Instrument.MEMORY, pages * resource.getpagesize())


def _descriptors() -> Iterator[Reading]:
    with suppress(OSError):
        # One of them is the listing's own.
        yield Reading(Instrument.OPEN_FDS, len(os.listdir("/dev/fd")) - 1)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Reading(Instrument.MAX_FDS, float("inf") if limit == resource.RLIM_INFINITY else limit)
