"""The package is whole: its list of packages, its wheel, its version."""

import importlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]

# Source folders, and the package that each becomes.
SOURCES = {"extension": "", "udfs": "duckvec/udfs", "sql": "duckvec/sql"}

# Files beside them that are part of a source distribution.
BESIDE = (
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
)


def _shipped(source: str) -> set[str]:
    """The files of a source folder under the names that they have in the wheel."""
    folder = ROOT / source
    files = [f for kind in ("*.py", "*.sql", "py.typed") for f in folder.rglob(kind)]
    return {(SOURCES[source] / f.relative_to(folder)).as_posix() for f in files}


def _expected() -> set[str]:
    return set().union(*map(_shipped, SOURCES))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution, and the wheel that was built from it.

    Made from a copy, so that no leftover of an earlier build gets in.
    """
    copy = tmp_path_factory.mktemp("build") / "source"
    copy.mkdir()
    skip = shutil.ignore_patterns("*.egg-info", "__pycache__", "fixtures")
    for source in (*SOURCES, "tests"):
        shutil.copytree(ROOT / source, copy / source, ignore=skip)
    for name in BESIDE:
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(copy.parent), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return copy.parent


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


def test_packages_in_pyproject_are_those_in_the_tree() -> None:
    folders = {Path(name).parent for name in _expected() if name.endswith(".py")}
    assert sorted(PACKAGES) == sorted(".".join(folder.parts) for folder in folders)


def test_every_package_has_an_init() -> None:
    inits = {f"{package.replace('.', '/')}/__init__.py" for package in PACKAGES}
    assert inits <= _expected()


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == _expected()
    assert "duckvec/py.typed" in inside
    assert any(name.endswith(".sql") for name in inside)


def test_the_source_distribution_holds_the_sources_and_no_half_of_the_tests(
    built: Path,
) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {
            member.name.partition("/")[2]
            for member in archive.getmembers()
            if member.isfile() and ".egg-info/" not in member.name
        }
    sources = {
        f.relative_to(ROOT).as_posix()
        for source in SOURCES
        for kind in ("*.py", "*.sql", "py.typed")
        for f in (ROOT / source).rglob(kind)
    }
    assert names == {*sources, *BESIDE, "PKG-INFO", "setup.cfg"}


def test_the_wheel_runs_on_any_machine_and_names_its_licence(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]


@pytest.mark.core
def test_the_version_is_that_of_pyproject() -> None:
    duckvec = importlib.import_module("duckvec")
    assert duckvec.__version__ == PROJECT["project"]["version"]


@pytest.mark.core
@pytest.mark.parametrize("name", PACKAGES)
def test_the_tests_run_on_this_tree(name: str) -> None:
    """Not on another installation, as in a tree copied with its environment."""
    package = importlib.import_module(name)
    assert ROOT in Path(str(package.__file__)).resolve().parents
