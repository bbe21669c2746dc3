"""Models from Hugging Face: each test is a whole ``pull`` in a process of its own, from a hub on loopback."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.fake_hub import REPOSITORY, Hub, serving_hub

CONTENT = bytes(range(256)) * 4096
PULL = """
import sys
from pathlib import Path
from rich.console import Console
from corral.pull import PullError, pull
try:
    print("GOT", pull(sys.argv[1], Path(sys.argv[2]), Console(width=200)))
except PullError as error:
    sys.exit(f"REFUSED {error}")
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub(Hub({"README.md": b"hello", "m-Q4_K_M.gguf": CONTENT})) as running:
        yield running


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "models"


def command(what: str, into: Path) -> list[str]:
    return [sys.executable, "-c", PULL, what, str(into)]


def environment(hub: Hub, **extra: str) -> dict[str, str]:
    home = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": "/nonexistent"}
    return {**os.environ, "HF_ENDPOINT": hub.url, **home, **extra}


def run(what: str, into: Path, hub: Hub, **extra: str) -> tuple[str, str]:
    """What it printed, and how it was refused."""
    done = subprocess.run(
        command(what, into), env=environment(hub, **extra), capture_output=True, text=True, check=False, timeout=100
    )
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) is ("REFUSED" not in done.stderr)
    return done.stdout, done.stderr.strip()


def until(claim: Callable[[], bool]) -> None:
    """Wait for the claim to hold; pytest's time limit ends a wait in vain."""
    while not claim():
        pass


def names(into: Path) -> list[str]:
    """All files, but for the note of what was fetched."""
    return sorted(path.name for path in into.iterdir() if path.name != "pulled.json")


def test_a_model_arrives_whole_and_is_not_fetched_twice(hub: Hub, into: Path) -> None:
    first, _ = run(REPOSITORY, into, hub)
    second, _ = run(f"hf:{REPOSITORY}/m-Q4_K_M.gguf", into, hub)

    assert (into / "m-Q4_K_M.gguf").read_bytes() == CONTENT
    assert names(into) == ["m-Q4_K_M.gguf"]
    assert f"fetching {REPOSITORY}: Q4_K_M, one file, 0.00 GB" in first
    assert second.endswith(f"is there, checksum verified\nGOT {into}/m-Q4_K_M.gguf\n")
    assert len(hub.asked) == 1


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, into: Path) -> None:
    hub.break_after = 300_000
    run(REPOSITORY, into, hub)

    assert (into / "m-Q4_K_M.gguf").read_bytes() == CONTENT
    first, second = [wanted for _, wanted, _ in hub.asked]
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 300_000


def test_an_interrupted_pull_is_resumed_by_the_next(hub: Hub, into: Path) -> None:
    hub.hang_after = 300_000
    with subprocess.Popen(command(REPOSITORY, into), env=environment(hub), stderr=subprocess.DEVNULL) as process:
        assert hub.hanging.wait(60)
        # All but what the file's own buffer may hold back.
        until(lambda: sum(path.stat().st_size for path in into.glob("*.part")) > 290_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    (part,) = names(into)
    run(REPOSITORY, into, hub)

    assert part.startswith("m-Q4_K_M.gguf.")
    assert hub.asked[1][1] == "bytes=300000-"
    assert names(into) == ["m-Q4_K_M.gguf"]
    assert (into / "m-Q4_K_M.gguf").read_bytes() == CONTENT


def test_a_hub_that_cannot_resume_is_asked_for_the_whole_file(hub: Hub, into: Path) -> None:
    hub.ranges = False
    hub.break_after = 300_000
    run(REPOSITORY, into, hub)

    assert (into / "m-Q4_K_M.gguf").read_bytes() == CONTENT


def test_a_split_model_is_fetched_whole(hub: Hub, into: Path) -> None:
    parts = [f"Q8_0/m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub.files |= {part: part.encode() for part in parts}
    printed, _ = run(f"{REPOSITORY}:Q8_0", into, hub)

    assert printed.endswith(f"GOT {into}/m-Q8_0-00001-of-00003.gguf\n")
    assert names(into) == [Path(part).name for part in parts]
    assert [path for path, _, _ in hub.asked] == parts


def test_the_token_is_sent(hub: Hub, into: Path) -> None:
    run(REPOSITORY, into, hub, HF_TOKEN="hf_secret")

    assert hub.asked[0][2] == "Bearer hf_secret"


def test_a_file_that_came_damaged_is_not_kept(hub: Hub, into: Path) -> None:
    hub.damaged["m-Q4_K_M.gguf"] = bytes(len(CONTENT))
    _, refused = run(REPOSITORY, into, hub)

    assert "came damaged and was removed; try again" in refused
    assert names(into) == []


def test_another_file_of_that_name_is_left_alone(hub: Hub, into: Path) -> None:
    into.mkdir()
    (into / "m-Q4_K_M.gguf").write_text("mine")
    _, refused = run(REPOSITORY, into, hub)

    assert "is there with other contents; move it away" in refused
    assert (into / "m-Q4_K_M.gguf").read_text() == "mine"


@pytest.mark.parametrize(
    ("where", "status", "code", "expected"),
    [
        ("m-Q4_K_M.gguf", 403, "GatedRepo", f"'{REPOSITORY}' is gated: accept its terms"),
        ("list", 401, "RepoNotFound", f"'{REPOSITORY}' is not on Hugging Face, or it is private"),
        ("m-Q4_K_M.gguf", 418, "", "Hugging Face answered 418"),
    ],
)
def test_a_refusal_says_what_to_do(hub: Hub, into: Path, where: str, status: int, code: str, expected: str) -> None:
    hub.refuse[where] = (status, code)
    _, refused = run(REPOSITORY, into, hub)

    assert refused.startswith(f"REFUSED {expected}")
    assert names(into) == []


def test_an_unknown_repository_is_told(hub: Hub, into: Path) -> None:
    assert "'org/other' is not on Hugging Face" in run("org/other", into, hub)[1]


def test_offline_mode_is_told(hub: Hub, into: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in run(REPOSITORY, into, hub, HF_HUB_OFFLINE="1")[1]
    assert hub.asked == []


def test_without_a_network_the_error_asks_about_it(into: Path) -> None:
    with serving_hub(Hub({})) as gone:
        pass
    _, refused = run(REPOSITORY, into, gone)

    assert refused.startswith("REFUSED Hugging Face cannot be reached (ConnectError); is this machine offline?")
