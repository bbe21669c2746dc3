"""What is installed is what is developed: the wheel, the locks and the version agree with the checkout."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import corral

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {"engine": ROOT / "requirements/engine.lock", "dev": ROOT / "requirements/dev.lock"}

# FastAPI and Pydantic bring these and say which versions fit.
BROUGHT_ALONG = {"starlette", "pydantic-core", "annotated-types"}

PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[a-z,-]+\])?==(\S+)", re.MULTILINE)


def declared(*, dev: bool) -> list[Requirement]:
    """What pyproject.toml says must be there."""
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["engine"]]
    groups = PROJECT["dependency-groups"]
    lines += groups["build"] + (groups["dev"] if dev else [])
    return [Requirement(line) for line in lines]


def pins(text: str) -> dict[str, str]:
    return {canonicalize_name(name): pinned for name, pinned in PIN.findall(text)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_the_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = [*(ROOT / "src/corral").rglob("*.py"), *(ROOT / "src/corral").rglob("*.lua")]
    sources = {str(path.relative_to(ROOT / "src")) for path in files}
    metadata = f"corral-{corral.__version__}.dist-info"

    assert sources | {"corral/py.typed"} == {name for name in names if name.startswith("corral/")}
    assert f"{metadata}/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {"corral", metadata}


def test_the_installed_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    # Its dependencies are those of this environment, found after its own packages.
    (own,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    where = subprocess.run(
        [python, "-c", "import corral; print(corral.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    ran = subprocess.run(
        [tmp_path / "venv/bin/corral", "version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert where.stdout.startswith(str(own))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{corral.__version__}\n"


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert version("corral") == corral.__version__
    assert newest is not None
    assert newest[1] == corral.__version__


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_satisfies_the_ranges_of_the_project(name: str) -> None:
    locked = pins(LOCKS[name].read_text())

    for requirement in declared(dev=name == "dev"):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, f"{requirement}: run scripts/lock"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_for_everything_and_names_no_index(name: str) -> None:
    text = LOCKS[name].read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text[text.index("\n", text.rindex("#    scripts/lock")) :].strip())

    assert len(blocks) == len(pins(text))
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text


def test_the_manual_way_installs_what_the_tests_ran_with() -> None:
    text = (ROOT / "requirements.txt").read_text()

    assert "\n-e .[engine]\n" in text
    assert pins(text) == pins(LOCKS["dev"].read_text())


def test_the_run_takes_the_versions_that_are_tested() -> None:
    assert pins(LOCKS["engine"].read_text()).items() <= pins(LOCKS["dev"].read_text()).items()


def imported() -> Iterator[str]:
    """The top-level names that Corral's source imports."""
    for path in (ROOT / "src/corral").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_whatever_the_source_imports_is_a_declared_dependency() -> None:
    providers = packages_distributions()
    foreign = set(imported()) - set(sys.stdlib_module_names) - {"corral"}
    named = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["engine"]
    known = {canonicalize_name(Requirement(line).name) for line in named}

    undeclared = {
        name
        for name in foreign
        if not {canonicalize_name(found) for found in providers[name]} & (known | BROUGHT_ALONG)
    }
    assert undeclared == set()
