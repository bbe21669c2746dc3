"""What the process says of itself."""

import os
from pathlib import Path

from corral.observe.footprint import footprint
from corral.observe.readings import Instrument, Source


def values(source: Source) -> dict[Instrument, float]:
    return {reading.instrument: reading.value for reading in source()}


def test_memory_descriptors_and_time_are_plausible() -> None:
    told = values(footprint())
    assert 1_000_000 < told[Instrument.PEAK_MEMORY] < 1e12
    assert told[Instrument.CPU] > 0
    assert 3 <= told[Instrument.OPEN_FDS] <= told[Instrument.MAX_FDS]
    if Path("/proc/self/statm").exists():
        assert 1_000_000 < told[Instrument.MEMORY] < 1e12


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_the_count_of_descriptors_is_exact() -> None:
    assert values(footprint())[Instrument.OPEN_FDS] == sum(map(is_open, range(10_000)))


def test_an_open_file_is_counted_until_it_is_closed() -> None:
    source = footprint()
    before = values(source)[Instrument.OPEN_FDS]
    descriptor = os.open(os.devnull, os.O_RDONLY)
    opened = values(source)[Instrument.OPEN_FDS]
    os.close(descriptor)
    assert (opened, values(source)[Instrument.OPEN_FDS]) == (before + 1, before)


def test_the_start_stays_the_same_from_scrape_to_scrape() -> None:
    source = footprint()
    assert values(source)[Instrument.START_TIME] == values(source)[Instrument.START_TIME]
