"""Packages that `ddbench plugins new` writes: sound as they are, under the names that were asked for."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from tiny import ddbench

from ddbench.errors import UsageError
from ddbench.testing.check import examined, found
from ddbench.testing.findings import CHECKS
from ddbench.testing.new import written


@pytest.fixture(autouse=True)
def paths() -> Iterator[None]:
    """What a package in a folder adds to the places of modules is taken away, and so are its modules."""
    before, loaded = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - loaded:
        if name.startswith("ddbench_my"):
            del sys.modules[name]


@pytest.mark.parametrize("kind", CHECKS)
def test_a_new_package_passes_its_own_tests_and_every_check(kind, tmp_path):
    folder, *files = written(f"my-own.{kind}2", kind, tmp_path)
    assert folder == tmp_path / f"ddbench-my-own.{kind}2"
    module = f"ddbench_my_own_{kind}2"
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "pyproject.toml",
        "README.md",
        f"{module}/__init__.py",
        f"tests/test_{module}.py",
    ]
    assert not [path for path in files if "my_module" in path.read_text() or "MyName" in path.read_text()]
    (examination,) = examined(found(str(folder)), {})
    assert examination.sound, examination.rows
    assert (examination.plugin.kind, examination.plugin.name) == (kind, f"my-own.{kind}2")
    tests = [test for name, test in runpy.run_path(str(files[-1])).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_what_is_written_is_clean(tmp_path):
    pytest.importorskip("ruff")
    for kind in CHECKS:
        written(f"my-{kind}", kind, tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--line-length", "120", "--isolated", "--no-cache", str(tmp_path)]
    for words in (["check", "--select", "E,F,I,B,UP", "--ignore", "B905"], ["format", "--check"]):
        done = subprocess.run([*ruff, *words, *rules], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_names_are_those_of_the_plugin(tmp_path):
    answer = ddbench("plugins", "new", "ddbench-sharp-means", "--kind", "matcher", "--to", tmp_path)
    assert answer.code == 0, answer.err
    folder = tmp_path / "ddbench-sharp-means"
    assert answer.out.splitlines()[0] == str(folder / "pyproject.toml")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ddbench-sharp-means"
    assert project["entry-points"]["ddbench"] == {"sharp-means": "ddbench_sharp_means"}
    code = (folder / "ddbench_sharp_means" / "__init__.py").read_text()
    assert "class SharpMeans:" in code
    assert 'name = "sharp-means"' in code
    assert "ddbench run --matcher sharp-means --ipc 1" in (folder / "README.md").read_text()
    assert f"ddbench plugins check {folder}" in answer.err


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("tesla", "matcher", "ddbench brings a matcher called 'tesla' already"),
        ("Has Spaces", "matcher", "a plugin is named with a-z, 0-9 and single - _ . between them, not 'Has Spaces'"),
        ("../up", "matcher", "a plugin is named with"),
        ("2fast", "matcher", "a plugin is named with"),
        ("a" * 51, "matcher", "a plugin is named with"),
        ("mine", "decoder", "a plugin is a dataset, matcher, scheduler, network or metric, not a 'decoder'"),
        ("there", "metric", "is there already; name another folder with --to"),
    ],
)
def test_names_that_no_plugin_can_have_are_refused(tmp_path, name, kind, said):
    (tmp_path / "ddbench-there").mkdir()
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        written(name, kind, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ddbench-there"]
