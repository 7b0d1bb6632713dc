"""Edited code of third parties, end to end: nothing that older code made is taken for what the new code makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_code import distribution, edit
from tiny import Answer

from ddbench.base.cache import read_json
from ddbench.run.folder import run_folders

HELPED = """
from dataclasses import dataclass
from ddbench import SyntheticSet, hookimpl
from scaling import FACTOR

@dataclass(frozen=True)
class Scaled:
    "Random images, scaled."
    name = "scaled"
    steps: int = 1
    def init(self, problem):
        drawn = problem.real.draw(problem.ipc)
        return {"x": drawn.images.clone(), "y": drawn.labels}
    def step(self, problem, state, k): return state, {"loss": 1.0}
    def result(self, problem, state): return SyntheticSet(FACTOR * state["x"], state["y"].clone())

@hookimpl
def register_matchers(register): register(Scaled)
"""
DERIVED = """
from dataclasses import dataclass
from ddbench import hookimpl
from scaled_matcher import Scaled

@dataclass(frozen=True)
class Derived(Scaled):
    "The same."
    name = "derived"

@hookimpl
def register_matchers(register): register(Derived)
"""
NETWORK = """
from dataclasses import dataclass
from torch import nn
from ddbench import hookimpl
from acting import ACT

@dataclass(frozen=True)
class Small:
    "Two layers."
    name = "small"
    width: int = 8
    def build(self, shape, classes):
        pixels = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, self.width), ACT(), nn.Linear(self.width, classes))

@hookimpl
def register_networks(register): register(Small)
"""
METRIC = """
from dataclasses import dataclass
from ddbench import hookimpl

@dataclass(frozen=True)
class Constant:
    "A number."
    name = "constant"
    def __call__(self, logits, targets): return 1.0

@hookimpl
def register_metrics(register): register(Constant)
"""
SHORT = ["-o", "protocol.steps=20", "-o", "protocol.lrs=0.01", "--students", "1", "--quiet"]
TASK = ["run", "--dataset", "toy", "--ipc", "1", "--no-random"]
TESLA = [
    *("-o", "matcher.steps=3", "-o", "matcher.experts=2", "-o", "matcher.max_start=2", "-o", "matcher.span=1"),
    *("--matcher", "tesla", "--network", "small", "--scheduler", "pdd", "--ipc", "2", "-o", "scheduler.stages=2"),
]
Go = Callable[..., Answer]


@pytest.fixture
def plugins(tmp_path) -> Path:
    folder = tmp_path / "plugins"
    distribution(
        folder, "scaled", {"scaled_matcher.py": HELPED, "scaling.py": "FACTOR = 1.0\n"}, {"scaled": "scaled_matcher"}
    )
    distribution(folder, "derived", {"derived_matcher.py": DERIVED}, {"derived": "derived_matcher"})
    acting = "from torch import nn\n\nACT = nn.ReLU\n"
    distribution(folder, "small", {"small_network.py": NETWORK, "acting.py": acting}, {"small": "small_network"})
    return distribution(folder, "constant", {"constant_metric.py": METRIC}, {"constant": "constant_metric"})


@pytest.fixture
def go(forks, plugins, tmp_path) -> Go:
    def go(*words: Any, home: str = "home") -> Answer:
        answer = forks.run(words, tmp_path / home, (str(plugins),))
        assert answer.code == 0, answer.err
        return answer

    return go


def same_set(one: Path, other: Path) -> bool:
    return (one / "distilled.safetensors").read_bytes() == (other / "distilled.safetensors").read_bytes()


def said(answer: Answer) -> str:
    return " ".join(answer.err.split())


@pytest.mark.parametrize(
    ("matcher", "file", "old", "new", "name"),
    [
        ("scaled", "scaling.py", "1.0", "0.5", "scaling"),
        ("derived", "scaled_matcher.py", "FACTOR *", "0.5 *", "scaled_matcher"),
        ("derived", "scaling.py", "1.0", "0.5", "scaling"),
    ],
)
def test_a_run_by_other_code_of_anything_behind_its_matcher_is_made_anew(
    go, plugins, tmp_path, matcher, file, old, new, name
):
    out = tmp_path / "runs"
    words = [*TASK, "--matcher", matcher, "-o", "network.width=8", *SHORT, "--no-ceiling", "--out", out]
    go(*words)
    (first,) = run_folders(out)
    again = go(*words)
    assert "anew" not in again.err
    edit(plugins / file, old, new)
    assert f"the source of {name} has changed" in said(go(*words))
    (kept,) = set(run_folders(out, set_aside=True)) - {first}
    assert not same_set(first, kept)
    go(*words[:-1], tmp_path / "whole")
    assert same_set(first, *run_folders(tmp_path / "whole"))


def test_an_edited_network_has_experts_lessons_and_a_ceiling_of_its_own(go, plugins, tmp_path):
    words = [*TASK, *TESLA, *SHORT, "--json", "--out"]
    go(*words, tmp_path / "runs")
    (first,) = run_folders(tmp_path / "runs")
    edit(plugins / "acting.py", "ReLU", "Tanh")
    changed = go(*words, tmp_path / "runs")
    assert "the source of acting has changed" in said(changed)
    whole = go(*words, tmp_path / "whole", home="another home")
    assert same_set(first, *run_folders(tmp_path / "whole"))
    assert [row["accuracy_mean"] for row in changed.json] == [row["accuracy_mean"] for row in whole.json]
    for kind in ("experts", "lessons", "ceilings"):
        made, anew = (
            {folder.name for folder in (tmp_path / home / kind).iterdir()} for home in ("home", "another home")
        )
        assert anew < made
        assert len(made) == 2 * len(anew)


def test_an_evaluation_by_other_code_of_a_network_is_made_anew_and_the_old_one_is_kept(go, plugins, tmp_path):
    out = tmp_path / "runs"
    go(*TASK, "--matcher", "random", "-o", "network.width=8", *SHORT, "--no-ceiling", "--out", out)
    (folder,) = run_folders(out)
    words = ["eval", folder, "--network", "small", "--students", "1", "--json"]
    first = go(*words)
    (path,) = [p for p in folder.glob("evaluations/*.json") if "sources" in read_json(p)]
    before = path.read_bytes()
    assert set(read_json(path)["sources"]) == {"small_network", "acting"}
    assert "other code" not in go(*words).err
    assert path.read_bytes() == before
    edit(plugins / "acting.py", "ACT = nn.ReLU", "ACT = nn.Softsign")
    changed = go(*words)
    assert f"evaluation {path} was made by other code of acting: it is made anew" in said(changed)
    (kept,) = path.parent.glob("*.json.before-*")
    assert kept.read_bytes() == before
    assert kept.name in said(changed)
    assert len(changed.json) == len(first.json) == 2
    path.unlink()
    assert go(*words).json == changed.json
    assert go(*words).json == changed.json


def test_an_evaluation_by_built_ins_is_what_it_was(go, tmp_path):
    out = tmp_path / "runs"
    go(*TASK, "--matcher", "random", "-o", "network.width=8", *SHORT, "--no-ceiling", "--out", out)
    (folder,) = run_folders(out)
    go("eval", folder, "--network", "mlp", "--students", "1", "--metrics", "ece")
    for path in folder.glob("evaluations/*.json"):
        assert "sources" not in read_json(path)


def test_a_metric_of_other_code_is_measured_again_and_the_students_are_the_same(go, plugins, tmp_path):
    out = tmp_path / "runs"
    go(*TASK, "--matcher", "random", "-o", "network.width=8", *SHORT, "--no-ceiling", "--out", out)
    (folder,) = run_folders(out)
    (path,) = folder.glob("evaluations/*.json")
    words = ["eval", folder, "--students", "1", "--metrics", "constant,ece", "--json"]
    (row,) = go(*words).json
    assert row["constant_mean"] == 1.0
    assert set(read_json(path)["metric_sources"]["constant"]) == {"constant_metric"}
    before = path.read_bytes()
    assert "measured" not in go(*words).err
    assert path.read_bytes() == before
    edit(plugins / "constant_metric.py", "return 1.0", "return 0.5")
    changed = go(*words)
    assert f"metric constant in {path} was measured by other code of constant_metric; it is measured again" in said(
        changed
    )
    assert changed.json == [row | {"constant_mean": 0.5}]
    assert "measured" not in go(*words).err
    assert not list(path.parent.glob("*.before-*"))
