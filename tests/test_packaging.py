"""The wheel: what a user gets who installs ddbench, and what its metadata promise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.version import Version
from tiny import spec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CHANGES = re.findall(r"^## (\d+\.\d+\.\d+)(, not released yet)?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)


def built(folder: Path, out: Path, builder: Callable[[str], WheelBuilder | SdistBuilder] = WheelBuilder) -> Path:
    """The wheel, or the sdist, of a checkout or an unpacked sdist."""
    pytest.importorskip("hatch_vcs", reason="hatch-vcs is not installed: pip install -e '.[dev]'")
    return Path(next(builder(str(folder)).build(directory=str(out))))


def version_of(wheel: Path) -> Version:
    return Version(wheel.name.split("-")[1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The paths in the wheel that hatchling builds of this checkout."""
    with zipfile.ZipFile(built(ROOT, tmp_path_factory.mktemp("dist"))) as archive:
        return set(archive.namelist())


def test_the_wheel_tells_type_checkers_that_ddbench_has_types(wheel):
    assert "ddbench/py.typed" in wheel  # PEP 561


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        folder = ROOT / package
        files = {path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file()}
        expected = {path.as_posix() for path in files if "__pycache__" not in path.parts}
        assert expected
        assert not expected - wheel


def test_what_is_found_by_name_is_in_the_wheel_as_it_is_in_a_checkout(wheel):
    there = [p for part in ("leaderboards", "examples") for p in (ROOT / part).rglob("*")]
    tracked = {p for p in there if p.is_file() and "__pycache__" not in p.parts}
    assert {f"ddbench/shipped/{path.relative_to(ROOT).as_posix()}" for path in tracked} <= wheel
    assert {"leaderboards/digits/board.toml", "examples/ddbench-npz/pyproject.toml"} <= {
        path.removeprefix("ddbench/shipped/") for path in wheel
    }
    assert "ddbench/testing/skeletons/matcher.py.txt" in wheel


def test_the_metadata_say_on_which_systems_ddbench_works():
    classifiers = PROJECT["project"]["classifiers"]
    assert [c for c in classifiers if c.startswith("Operating System")] == ["Operating System :: POSIX"]
    assert "POSIX systems alone" in (ROOT / "README.md").read_text()


def test_the_citation_names_the_last_release_and_the_licence_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text()
    released = next(version for version, pending in CHANGES if not pending)
    assert f"\nversion: {released}\n" in citation
    assert f"\nlicense: {PROJECT['project']['license']}\n" in citation


def test_a_checkout_without_a_tag_is_of_the_version_that_is_being_worked_on():
    version, _ = CHANGES[0]
    assert PROJECT["tool"]["hatch"]["version"]["fallback-version"] == f"{version}.dev0"


@pytest.fixture
def clone(tmp_path) -> Path:
    """A repository of one commit without a tag, with all that a wheel is made of."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "clone"
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for part in (*target["packages"], *target.get("force-include", {})):
        (folder / part).mkdir(parents=True)
        (folder / part / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@here", *words], cwd=folder, check=True)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--no-gpg-sign", "--allow-empty", "-m", "change")


def test_the_version_comes_from_the_tag_and_of_a_clone_without_one_from_the_file(clone, tmp_path):
    pending = Version(PROJECT["tool"]["hatch"]["version"]["fallback-version"])
    untagged = version_of(built(clone, tmp_path / "a"))
    assert untagged.base_version == pending.base_version
    assert untagged.is_devrelease
    git(clone, "tag", "v7.8.9")
    assert version_of(built(clone, tmp_path / "b")) == Version("7.8.9")
    commit(clone)
    later = version_of(built(clone, tmp_path / "c"))
    assert Version("7.8.9") < later < Version("7.8.10")
    shutil.rmtree(clone / ".git")
    assert version_of(built(clone, tmp_path / "d")) == pending


@pytest.mark.filterwarnings("ignore:.*is shallow:UserWarning")
def test_a_shallow_clone_has_a_version_too(clone, tmp_path):
    commit(clone)
    git(tmp_path, "clone", "--quiet", "--depth", "1", clone.as_uri(), "shallow")
    assert version_of(built(tmp_path / "shallow", tmp_path / "dist")).is_devrelease


def test_keys_do_not_depend_on_the_version():
    before = spec()
    later = replace(before, versions=tuple((name, f"{text.split()[0]} 99.0.dev1+g1") for name, text in before.versions))
    assert later.versions != before.versions
    assert later.key == before.key


@pytest.mark.slow
def test_a_wheel_of_the_sdist_has_its_version_and_works_outside_of_the_repository(tmp_path):
    sdist = built(ROOT, tmp_path / "dist", SdistBuilder)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    made = built(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "again")
    assert sdist.name == f"ddbench-{version_of(made)}.tar.gz"
    direct = built(ROOT, tmp_path / "dist")
    assert zipfile.ZipFile(made).namelist() == zipfile.ZipFile(direct).namelist()
    smoke = ["bash", str(ROOT / ".ci" / "smoke"), sys.executable, str(made)]
    done = subprocess.run(smoke, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tesla pdd" in done.stdout


def test_workflows_run_what_a_contributor_runs_on_every_python_that_is_supported():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert "- run: bash .ci/run\n" in text
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert json.loads(re.search(r"python: (\[.*\])", text)[1]) == supported
