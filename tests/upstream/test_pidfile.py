"""The file that says which process keeps the llama-servers."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from corral.core.errors import EngineError
from corral.upstream import pidfile
from corral.upstream.pidfile import FILE_NAME, Kept
from support.children import python

SERVERS = (Kept("a", "http://127.0.0.1:8081", "run/logs/a.log"),)


def entered(directory: Path, **changes: object) -> None:
    """Change what the file says."""
    told = json.loads((directory / FILE_NAME).read_text())
    (directory / FILE_NAME).write_text(json.dumps(told | changes))


def test_a_keeper_is_found_until_it_lets_go(tmp_path: Path) -> None:
    keeper = pidfile.claim(tmp_path / "run", 12.5, SERVERS)

    assert keeper.pid == os.getpid()
    assert pidfile.find(tmp_path / "run") == keeper

    pidfile.release(tmp_path / "run")
    pidfile.release(tmp_path / "run")

    assert pidfile.find(tmp_path / "run") is None
    assert list((tmp_path / "run").iterdir()) == []


def test_there_is_one_keeper(tmp_path: Path) -> None:
    keeper = pidfile.claim(tmp_path, 1.0, SERVERS)

    with pytest.raises(EngineError, match="running already"):
        pidfile.claim(tmp_path, 1.0, ())

    assert pidfile.find(tmp_path) == keeper
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]


def test_a_stranger_with_the_keepers_pid_is_no_keeper(tmp_path: Path) -> None:
    pidfile.claim(tmp_path, 1.0, SERVERS)
    entered(tmp_path, started="at another time")

    assert pidfile.find(tmp_path) is None


def test_the_place_of_a_dead_keeper_is_free(tmp_path: Path) -> None:
    with subprocess.Popen(python("pass")) as child:
        child.wait()
    pidfile.claim(tmp_path, 1.0, SERVERS)
    entered(tmp_path, pid=child.pid)
    assert pidfile.find(tmp_path) is None

    assert pidfile.claim(tmp_path, 2.0, SERVERS) == pidfile.find(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "1", "null", '{"pid": 1}', '{"servers": [{}]}', '{"servers": [1]}', '{"servers": 1}']
)
def test_a_file_that_is_not_ours_names_no_keeper(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)

    assert pidfile.find(tmp_path) is None
