"""Metrics that misbehave: each is a failure with its name, and no number of another one depends on it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ddbench import Examinee, Seed, predict
from ddbench.errors import PluginError
from ddbench.grade.student import measured, share_right
from ddbench.testing import toy_task


@dataclass(frozen=True)
class Scored:
    """A metric of logits."""

    name = "mine"

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> Any:
        return Does.call(logits, targets)


@dataclass(frozen=True)
class Examined:
    """A metric that sees all of a student."""

    name = "mine"

    def examine(self, student: Examinee) -> Any:
        return Does.call(student)


class Does:
    call: Any = None


@pytest.fixture(scope="module")
def student() -> Examinee:
    task = toy_task()
    vector = task.network.init(Seed(0))
    logits, targets = predict(task.network, vector, task.real)
    return Examinee(task.network, vector, task.real, logits, targets, ((3, vector.clone()),), 5)


def made(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    monkeypatch.setattr(Does, "call", staticmethod(call))


def test_a_metric_that_changes_what_it_is_shown_changes_no_other(student, monkeypatch):
    def spoils(shown: Examinee) -> dict[str, float]:
        shown.vector.zero_()
        shown.logits.numpy().fill(0)
        shown.targets.zero_()
        return {"a": 1.0}

    made(monkeypatch, spoils)
    before = student.vector.clone(), student.logits.clone(), student.targets.clone()
    found = measured(student, {"mine": Examined(), "again": Examined()})
    assert found == {"accuracy": share_right(*before[1:]), "mine.a": 1.0, "again.a": 1.0}
    after = student.vector, student.logits, student.targets
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    made(monkeypatch, lambda logits, targets: float(logits.zero_().sum() + targets.zero_().sum()))
    assert measured(student, {"mine": Scored()})["mine"] == 0.0
    assert torch.equal(student.logits, before[1])


@pytest.mark.parametrize("change", [lambda t: t.zero_(), lambda t: t.numpy().fill(0)], ids=["torch", "numpy"])
def test_a_metric_that_changes_the_test_data_fails(monkeypatch, change):
    task = toy_task()
    vector = task.network.init(Seed(0))
    shown = Examinee(task.network, vector, task.real, *predict(task.network, vector, task.real))
    made(monkeypatch, lambda student: {"a": 1.0 if change(student.test.targets) is None else 0.0})
    with pytest.raises(PluginError, match="metric 'mine' changed targets of the test data"):
        measured(shown, {"mine": Examined()})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: sys.exit(0), r"examine\(\) of metric 'mine' raised SystemExit"),
        (lambda s: 3.0, "raised AttributeError"),
        (lambda s: {"a": "many"}, "raised ValueError"),
        (lambda s: {"a": None}, "raised TypeError"),
        (lambda s: {"../a": 1.0}, "names a number '../a'; a name is a word"),
        (lambda s: {1: 1.0}, "names a number 1; a name is a word"),
    ],
)
def test_a_metric_that_names_no_numbers_is_a_sentence(student, monkeypatch, call, said):
    made(monkeypatch, call)
    with pytest.raises(PluginError, match=said):
        measured(student, {"mine": Examined()})


def test_a_metric_of_logits_that_fails_is_a_sentence(student, monkeypatch):
    made(monkeypatch, lambda logits, targets: torch.ones(2))
    with pytest.raises(PluginError, match="metric 'mine' raised"):
        measured(student, {"mine": Scored()})


def test_a_metric_that_changes_the_process_does_not_change_the_next_student(student, monkeypatch, capsys):
    def changes(logits: torch.Tensor, targets: torch.Tensor) -> float:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(1)
        print("measuring")
        return 1.0

    made(monkeypatch, changes)
    before = torch.get_rng_state()
    assert measured(student, {"mine": Scored()})["mine"] == 1.0
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(before, torch.get_rng_state())
    assert capsys.readouterr().out == ""
