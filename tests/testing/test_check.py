"""`ddbench plugins check`: packages by folder, by name, by plugin, and the examples."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import THREAD, ddbench

from ddbench.errors import DataError, UsageError
from ddbench.plugins import Broken, registry
from ddbench.testing import check
from ddbench.testing.findings import CHECKS
from ddbench.testing.new import written

ROOT = Path(__file__).parents[2]
EXAMPLES = ("ddbench-class-means", "ddbench-npz")  # the kit checks them; an executor has its tests alone
INSTALLED = (*EXAMPLES, "ddbench-shell")


@pytest.fixture(autouse=True)
def paths() -> Iterator[None]:
    before, loaded = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - loaded:
        if name.startswith(("ddbench_mine", "ddbench_class", "ddbench_npz")):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path) -> Path:
    return written("mine", "metric", tmp_path)[0]


def code(folder: Path) -> Path:
    return folder / "ddbench_mine" / "__init__.py"


def test_a_sound_package_passes_each_check_by_its_name(mine):
    answer = ddbench("plugins", "check", mine)
    assert answer.code == 0, answer.err
    lines = [line.split() for line in answer.out.splitlines()]
    assert [line[0] for line in lines if line[1:2] == ["passed"]] == list(CHECKS["metric"])
    assert "all checks passed" in answer.err


def test_a_faulty_package_fails_the_check_that_its_fault_is_of(mine):
    text = code(mine).read_text()
    code(mine).write_text(text.replace("return float(", "return 2 + float("))
    answer = ddbench("plugins", "check", mine, "--json")
    assert answer.code == 1
    (told,) = answer.json
    assert (told["kind"], told["name"], told["passed"]) == ("metric", "mine", False)
    failed = {row["check"]: row["what"] for row in told["checks"] if row["outcome"] == "failed"}
    assert list(failed) == ["range"]
    assert failed["range"].startswith("metric 'mine' gives ")
    assert "outside of its bounds (0.0, 1.0)" in failed["range"]


def test_options_are_given_to_the_plugins_that_have_them(mine):
    assert ddbench("plugins", "check", mine, "-o", "metric.k=1", "--json").json[0]["passed"]
    for option, said in (
        ("metric.bins=3", "no metric here has an option 'bins'"),
        ("metric.k=0", "metric.k"),
        ("protocol.steps=3", "must be KIND.NAME with a kind of matcher, scheduler"),
    ):
        answer = ddbench("plugins", "check", mine, "-o", option)
        assert answer.code == 2
        assert said in answer.err


def test_a_kind_without_checks_is_a_sentence(mine, monkeypatch):
    monkeypatch.delitem(CHECKS, "metric")
    answer = ddbench("plugins", "check", mine)
    assert answer.code == 2
    assert "the kit has checks of a matcher, scheduler, dataset, network, and none of a metric" in answer.err


def test_installed_plugins_are_found_by_their_package_and_by_their_names():
    assert {plugin.package for plugin in check.found("ddbench")} == {"ddbench"}
    assert len(check.found("DDBench")) == len(check.found("ddbench")) == len(registry().plugins)
    assert [(p.kind, p.name) for p in check.found("pdd")] == [("scheduler", "pdd")]
    answer = ddbench("plugins", "check", "pdd")
    assert answer.code == 0, answer.out
    with pytest.raises(
        UsageError, match=r"nothing is called 'pddd'; did you mean 'pdd'.* or a folder with a pyproject"
    ):
        check.found("pddd")


def test_what_cannot_be_loaded_is_a_sentence(mine, monkeypatch):
    code(mine).write_text("import a_module_that_nobody_has\n")
    answer = ddbench("plugins", "check", mine)
    assert answer.code == 3
    assert "plugin 'mine' in " in answer.err
    assert "cannot be loaded: ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in answer.err
    (mine / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    with pytest.raises(UsageError, match=r"has no \[project\.entry-points\.ddbench\]"):
        check.found(str(mine))
    (mine / "pyproject.toml").write_text("[project\n")
    with pytest.raises(DataError, match="is not readable TOML of a package"):
        check.found(str(mine))
    monkeypatch.setattr(registry(), "broken", [Broken("lost", "dd-lost", "it has no wheels")])
    with pytest.raises(DataError, match="plugin 'lost' of dd-lost is skipped: it has no wheels"):
        check.found("DD_lost")


def test_a_method_with_other_arguments_is_one_sentence_before_anything_is_trained(tmp_path):
    folder = written("mine", "matcher", tmp_path)[0]
    text = code(folder).read_text()
    code(folder).write_text(text.replace("state: State, k: int)", "state: State)"))
    answer = ddbench("plugins", "check", folder)
    assert answer.code == 3
    assert answer.err.count("\n") == 1
    assert "matcher 'mine' has step(self, problem: " in answer.err
    assert "which must take (self, problem, state, k): too many positional arguments" in answer.err


def test_the_plugins_are_listed_as_before():
    assert {row["name"] for row in ddbench("plugins", "--json").json["plugins"]} >= {"tesla", "pdd"}
    assert "tesla" in ddbench("plugins").out


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_checked_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    arrays = {"x_train": pixels[:40], "x_test": pixels[40:], "y_train": np.arange(40) % 2, "y_test": np.arange(20) % 2}
    np.savez("sides.npz", names=np.array(["left", "right"]), **arrays)
    options = {"ddbench-npz": ["-o", "dataset.root=sides.npz"], "ddbench-class-means": ["-o", "matcher.batch_real=16"]}
    answer = ddbench("plugins", "check", name, *options[name], "--json")
    assert answer.code == 0, answer.out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_examples_install_into_a_fresh_environment_and_run(tmp_path):
    """What they depend on is taken from this environment; ddbench and they are installed into the new one."""
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=False, symlinks=True)
    python = fresh / "bin" / "python"
    site = next((fresh / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | THREAD
    env |= {"DDBENCH_HOME": str(tmp_path / "home"), "PATH": f"{fresh / 'bin'}:{os.environ['PATH']}"}

    def call(words: list[str], where: Path = tmp_path) -> str:
        done = subprocess.run(words, cwd=where, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (shlex.join(words), done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
    homes = [str(ROOT), *(str(ROOT / "examples" / name) for name in INSTALLED)]
    call([sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, *homes])
    listed = json.loads(call(["ddbench", "plugins", "--json"]))
    assert {("class-means", "ddbench-class-means"), ("npz", "ddbench-npz")} <= {
        (row["name"], row["package"]) for row in listed["plugins"]
    }
    assert not listed["broken"]
    call(["ddbench", "plugins", "check", "ddbench-class-means"])
    run = ["ddbench", "run", "--dataset", "toy", "--matcher", "class-means", "--ipc", "10", "--scheduler", "pdd"]
    call([*run, "-o", "matcher.steps=2", "-o", "protocol.steps=20", "-o", "scheduler.stages=2", "--no-ceiling"])
    for name in INSTALLED:
        tests = str(ROOT / "examples" / name / "tests")
        call([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", tests])
    call(["ddbench", "plugins", "new", "mine", "--kind", "matcher"])
    call([sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, "./ddbench-mine"])
    call([str(python), "-m", "pytest", "-q", "ddbench-mine/tests"])
    call(["ddbench", "plugins", "check", "ddbench-mine"])
