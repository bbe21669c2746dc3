"""What Corral tells of its own process while it serves."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake import FakeLlama
from support.gateway import Gateway

LOW = 256


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """The hard limit, while the soft one of this process and its children is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LOW, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_corral_opens_as_many_files_as_the_system_lets_it(tmp_path: Path, hard_limit: int) -> None:
    with FakeLlama() as fake, Gateway(tmp_path, LLAMA_BASE_URL=fake.url) as gateway:
        assert hard_limit > LOW
        assert gateway.metric("process_max_fds") == hard_limit


def test_how_late_the_event_loop_is_and_its_tasks_are_told_as_long_as_corral_runs(tmp_path: Path) -> None:
    with FakeLlama() as fake, Gateway(tmp_path, LLAMA_BASE_URL=fake.url) as gateway:
        gateway.until(lambda: gateway.metric("corral_event_loop_lag_seconds_count") >= 2, "measured twice")
        # At least the one that serves, those that watch the replica, and the scrape's own.
        assert gateway.metric("corral_event_loop_tasks") >= 4
