"""The wheel: what a user gets who installs ddbench, and what its metadata promise."""

from __future__ import annotations

import json
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The paths in the wheel that hatchling builds of this checkout."""
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist"))))
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_tells_type_checkers_that_ddbench_has_types(wheel):
    assert "ddbench/py.typed" in wheel  # PEP 561


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in packages["packages"]:
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [c for c in project["classifiers"] if c.startswith("Operating System")] == ["Operating System :: POSIX"]
    assert "POSIX systems alone" in (ROOT / "README.md").read_text()


def test_the_citation_names_the_version_and_licence_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation


def test_workflows_run_what_a_contributor_runs_on_every_python_that_is_supported():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert "- run: bash .ci/run\n" in text
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert json.loads(re.search(r"python: (\[.*\])", text)[1]) == supported
