"""What a run sees of itself, and where it keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from ddbench_matching.common import not_falling
from problems import toy_with_experts
from tiny import ddbench, run, spec, words

from ddbench import Needs
from ddbench.base.cache import read_json
from ddbench.base.progress import noting
from ddbench.plugins import needs_of, stuck_of
from ddbench.run.record import RunRecord
from ddbench.run.watch import IMAGES, SNAPSHOTS, ExpertsSeen, look_after, rows_of, seen_of_experts


@pytest.mark.parametrize(
    ("steps", "after"), [(1, 1), (2, 1), (40, 20), (100, 50), (150, 50), (450, 50), (10_000, 1000)]
)
def test_a_run_looks_at_itself_after_a_tenth_and_not_before_fifty_if_it_has_as_many_more(steps, after):
    assert look_after(steps) == after


def test_the_first_experts_snapshots_are_graded_on_validation_images():
    made = spec("tesla", ipc=2)
    problem, validation = toy_with_experts(), made.dataset.load().validation
    wanted = needs_of(made.matcher, problem)
    (seen,) = seen_of_experts(problem, wanted, validation)
    examples = validation[torch.arange(len(validation))]
    for epoch in wanted.snapshots:
        logits = problem.network.apply(
            problem.experts.snapshot(0, epoch).double().float(), examples.images, train=False
        )
        right = [int(row.argmax()) == int(label.argmax()) for row, label in zip(logits, examples.labels, strict=True)]
        assert seen.accuracies[epoch] == pytest.approx(sum(right) / len(right))
    assert (seen.images, seen.chance) == (min(IMAGES, len(validation)), 1 / problem.classes)
    assert seen.sentence.startswith(f"the first expert, on {seen.images} validation images: ")


def test_of_many_snapshots_some_are_looked_at_the_first_and_the_last_among_them():
    made = spec("tesla", ipc=2)
    problem, asked = toy_with_experts(), []
    with patch.object(
        type(problem.experts),
        "snapshot",
        lambda self, index, epoch: asked.append((index, epoch)) or torch.zeros(problem.network.length),
    ):
        (seen,) = seen_of_experts(problem, Needs(3, tuple(range(40))), made.dataset.load().validation)
    assert len(seen.accuracies) == SNAPSHOTS
    assert {0, 39} <= set(seen.accuracies)
    assert {index for index, _ in asked} == {0}


def test_matchers_without_experts_have_nothing_to_show():
    problem, validation = toy_with_experts(), spec("dm").dataset.load().validation
    assert seen_of_experts(problem, Needs(), validation) == []


def test_the_accuracy_of_a_teacher_is_recorded_with_the_run(tmp_path):
    """Whether experts label random images or a teacher those of rded, the record says how much they know."""
    labelled = spec("random", ipc=2, matcher__labels="teacher", matcher__experts=1, matcher__teacher_epochs=2)
    taught = spec("rded", ipc=2, matcher__teacher_epochs=2)
    for made, seen in ((labelled, "expert"), (taught, "teacher")):
        said: list[str] = []
        with noting(said.append, said.append):
            folder = run(tmp_path, made)
        held = RunRecord.read(folder).result.stages[0].experts
        assert held is not None
        assert held.epochs == [2]
        sentence = ExpertsSeen({2: held.accuracies[0]}, held.images, 1 / 3, seen).sentence
        assert f"stage 0: {sentence}" in said


def test_experts_that_know_next_to_nothing_are_told():
    assert "classify 14.0 % of validation images right at best, where chance is 10.0 %" in str(
        ExpertsSeen({0: 0.1, 3: 0.14}, 500, 0.1).flaw
    )
    assert ExpertsSeen({0: 0.1, 3: 0.16}, 500, 0.1).flaw is None


@dataclass(frozen=True)
class Says:
    """A matcher with an opinion."""

    name = "says"
    text: str | None = None

    def stuck(self, problem, rows):
        assert rows == [{"loss": 1.0}]
        return self.text


def test_a_matcher_that_does_not_look_says_nothing():
    assert stuck_of(Says("it is"), None, [{"loss": 1.0}]) == "it is"
    assert stuck_of(Says(), None, [{"loss": 1.0}]) is None
    assert stuck_of(object(), None, []) is None


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0] * 40, None),
        ([1.0] * 20 + [1.05] * 20, None),
        ([1.0] * 20 + [1.3] * 20, "from 1 to 1.3"),
        ([1.0, 9.0], None),
    ],
)
def test_a_loss_without_scale_is_compared_with_where_it_began(losses, said):
    found = not_falling([{"loss": loss} for loss in losses])
    assert found is None if said is None else said in str(found)


def test_lines_of_the_log_that_are_damaged_are_left_out(tmp_path):
    good = {"stage": 1, "step": 3, "loss": 0.5}
    lines = [
        b'{"stage": 1, "loss" 0.5}',
        b"[]",
        b"3",
        b'{"stage": 1, "loss": "x"}',
        b"\xff",
        b"[" * 5000,
        b'{"stage": 0}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, json.dumps(good).encode(), b""]))
    assert rows_of(tmp_path / "metrics.jsonl", 1, 10_000) == [good]


def test_what_a_run_sees_is_said_once_and_kept_and_nothing_is_stopped(tmp_path, monkeypatch):
    """Students that hardly move: their loss stays at 1."""
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    heard: list[str] = []
    told: list[str] = []
    made = spec("tesla", ipc=2, matcher__lr_init=1e-6, matcher__steps=12)
    with noting(heard.append, told.append):
        folder = run(tmp_path / "out", made, students=1)
    warnings = [line for line in heard if "closes hardly any" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("stage 0: ")
    record = RunRecord.read(folder)
    assert record.result.status == "ok"
    assert record.result.warnings == [line.removeprefix("stage 0: ") for line in heard]
    (stage,) = record.result.stages
    assert stage.warnings == record.result.warnings
    assert stage.experts is not None
    assert stage.experts.epochs == [0, 1, 2]
    assert any(line.startswith("stage 0: the first expert, on") for line in told)


def test_a_run_that_goes_well_has_no_such_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    more = {"matcher__lr_init": "auto", "matcher__steps": 12, "matcher__syn_steps": 10, "experts__lr": 0.1}
    folder = run(tmp_path / "out", spec("tesla", ipc=3, **more), students=1)
    assert not [text for text in RunRecord.read(folder).result.warnings if "distance" in text or "moves away" in text]


def test_a_resumed_run_keeps_what_was_said_before(tmp_path, monkeypatch):
    """The look is in the checkpoint: it is neither lost nor said twice."""
    from ddbench.base.progress import Event, listening
    from ddbench.errors import InterruptedRun

    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    made = spec("tesla", ipc=2, matcher__lr_init=1e-6, matcher__steps=12)

    def stop(event: Event) -> None:
        if event.what == "stage 0 distilling" and event.done == 9:
            raise InterruptedRun("stopped")

    first: list[str] = []
    with pytest.raises(InterruptedRun), listening(stop), noting(first.append):
        run(tmp_path / "out", made, students=1)
    second: list[str] = []
    with noting(second.append):
        folder = run(tmp_path / "out", made, students=1)
    assert sum("closes hardly any" in line for line in first) == 1
    assert not [line for line in second if "closes hardly any" in line]
    assert read_json(folder / "result.json")["warnings"] == [line.removeprefix("stage 0: ") for line in first]


def test_the_command_line_prints_the_experts_accuracies(tmp_path):
    asked = words("tesla", ipc=2)
    answer = ddbench(
        "run", *asked, "--out", tmp_path / "out", "--students", 1, "--no-random", "--no-ceiling", home=tmp_path / "h"
    )
    assert answer.code == 0
    assert "the first expert, on" in answer.err
    quiet = ddbench(
        "run",
        *asked,
        "--out",
        tmp_path / "o2",
        "--students",
        1,
        "--no-random",
        "--no-ceiling",
        "--quiet",
        home=tmp_path / "h",
    )
    assert "the first expert, on" not in quiet.err
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / "stage-0" / "result.json").read_text())["experts"]["images"] > 0
    assert replace(spec("tesla", ipc=2), seed=0).key in folder.name
