"""Evaluations as files: what they hold, what they depend on, and the ceiling beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from tiny import run, spec

from ddbench import Curriculum, Network, Seed, Starts, Student, teach
from ddbench.data.dataset import Dataset
from ddbench.errors import DataError
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation, _identity, ceiling, default_metrics, evaluate
from ddbench.grade.protocol import Protocol
from ddbench.grade.selection import tuned
from ddbench.grade.student import accuracy
from ddbench.train.fit import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(module_home, tmp_path_factory) -> Iterator[tuple[Distilled, Dataset, Protocol]]:
    """A set of random images, the data, and the rules."""
    base = spec("random", "single", 2)
    folder = run(tmp_path_factory.mktemp("runs"), base, students=1)
    return Distilled.load(folder / "distilled.safetensors"), base.dataset.load(), base.protocol


@pytest.fixture
def plan(made) -> Evaluation:
    distilled, dataset, protocol = made
    return Evaluation(distilled, dataset, protocol, 2, "cpu", metrics={})


def graded(plan: Evaluation, folder: Path, seed: int = 5) -> dict[str, Any]:
    return evaluate(plan, folder, threads=1, seed=seed)


def test_the_students_of_an_evaluation_are_those_of_a_loop_over_their_seeds(plan, tmp_path):
    record = graded(plan, tmp_path)
    distilled = plan.distilled
    network = distilled.build_network("cpu")
    test = replace(plan.dataset.test, preprocessing=distilled.preprocessing)
    for i, student in enumerate(record["students"]):
        seed = Seed(5) / "evaluation" / i
        begin = Student(network.init(seed / "init"))
        taught = teach(network, begin, distilled.curriculum, distilled.teaching, seed)
        assert student["accuracy"] == accuracy(network, taught.vector, test)
    assert len(record["students"]) == record["n"] == 2
    assert record["complete"]


def test_a_metric_is_added_to_what_is_there_and_counts_its_students(plan, tmp_path):
    first = graded(plan, tmp_path)
    assert first["metrics"] == {}
    wanted = {"ece": default_metrics()["ece"]}
    second = graded(replace(plan, metrics=wanted), tmp_path)
    assert second["metrics"] == {"ece": 2}
    assert [set(s) - {"accuracy"} for s in second["students"]] == [{"ece"}] * 2
    assert [s["accuracy"] for s in second["students"]] == [s["accuracy"] for s in first["students"]]
    (path,) = tmp_path.glob("*.json")
    before = path.stat().st_mtime_ns
    assert graded(replace(plan, metrics=wanted), tmp_path) == second
    assert path.stat().st_mtime_ns == before  # nobody was trained again


def test_a_metric_with_other_options_takes_the_place_of_its_old_numbers(plan, tmp_path):
    metric = default_metrics()["ece"]
    graded(replace(plan, metrics={"ece": metric}), tmp_path)
    other = graded(replace(plan, metrics={"ece": replace(metric, bins=3)}), tmp_path)
    assert other["metrics"] == {"ece(bins=3)": 2}


@pytest.mark.parametrize("change", [-0.25, 0.1])
def test_students_that_come_out_otherwise_are_refused_with_both_numbers(plan, tmp_path, change):
    record = graded(plan, tmp_path)
    (path,) = tmp_path.glob("*.json")
    now = record["students"][1]["accuracy"]
    record["students"][1]["accuracy"] = now + change
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"student 1 now has accuracy {now}, but .* records {now + change}"):
        graded(replace(plan, metrics={"ece": default_metrics()["ece"]}), tmp_path)


def test_what_decides_the_students_decides_the_file(plan, tmp_path):
    distilled = plan.distilled
    other = [s.detached("cpu") for s in distilled.curriculum.sets]
    other[0].images[0, 0, 0, 0] += 1
    changed = replace(distilled, curriculum=Curriculum(tuple(other), distilled.curriculum.phases))
    plans = {
        "as it is": plan,
        "by its own lr": replace(plan, together=False),
        "together": replace(plan, together=True),
        "tuned": replace(plan, tune=True),
        "one student": replace(plan, students=1),
        "another set": replace(plan, distilled=changed),
    }
    keys = {name: graded(one, tmp_path)["key"] for name, one in plans.items()}
    assert keys.pop("by its own lr") == keys["as it is"]
    keys["another seed"] = graded(plan, tmp_path, seed=6)["key"]
    assert len(set(keys.values())) == len(keys) == 6
    assert {path.stem for path in tmp_path.glob("*.json")} == set(keys.values())


def test_what_names_a_file_holds_one_entry_more_for_students_that_train_together(plan):
    """So that the files of students one at a time keep the names that earlier versions gave them."""
    alone, together = (_identity(plan, plan.distilled.build_network("cpu"), 5, 1, at_once) for at_once in (False, True))
    assert "together" not in alone
    assert together == alone | {"together": True}


def test_only_students_that_train_together_say_so(plan, tmp_path):
    assert graded(replace(plan, together=True), tmp_path)["together"] is True
    assert graded(replace(plan, together=False), tmp_path)["together"] is False


@pytest.mark.parametrize(
    ("own", "selects", "tune", "looks", "expected"),
    [
        ("validation", "validation", False, None, "validation"),
        ("validation", "validation", True, None, "validation"),
        ("validation", "test", False, None, "validation"),
        ("validation", "test", True, None, "test"),
        ("validation", "test", False, 1, "test"),
        ("test", "validation", True, None, "test"),
        ("test", "last", False, None, "test"),
        ("last", "test", False, None, "last"),
        ("last", "validation", True, None, "last"),
    ],
)
def test_an_evaluation_was_selected_on_test_data_if_its_set_or_its_students_were(
    plan, tmp_path, own, selects, tune, looks, expected
):
    distilled = replace(plan.distilled, about=plan.distilled.about | {"selection": own})
    rules = replace(plan.protocol, selects=selects, looks=looks, epochs=1 if looks else None)
    one = replace(plan, distilled=distilled, protocol=rules, tune=tune, students=1)
    assert graded(one, tmp_path)["selection"] == expected


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_student_lr_is_the_best_of_the_grid_by_the_mean_of_its_judges(plan, cache, part):
    rules = replace(plan.protocol, lrs=(0.001, 0.02, 0.3), judges=2)
    distilled, network = plan.distilled, plan.distilled.build_network("cpu")
    data = replace(getattr(plan.dataset, part), preprocessing=distilled.preprocessing)
    students = Starts(network, Seed(3), distilled.teaching, cache)
    chosen, tried = tuned(distilled.curriculum, students, data, rules)
    by_hand = {}
    for lr in rules.lrs:
        plan_at = distilled.curriculum.at(lr)
        by_hand[repr(lr)] = mean(
            accuracy(
                network,
                teach(network, students.student(i), plan_at, distilled.teaching, students.seed / i).vector,
                data,
            )
            for i in range(2)
        )
    assert {name: value for name, value in tried.items() if name != "own"} == by_hand
    assert tried[chosen] == max(tried.values())
    assert len(set(tried.values())) > 1


def test_the_ceiling_is_the_accuracy_of_students_of_all_real_images(made, cache):
    _, dataset, protocol = made
    source = spec("random").network
    rules = replace(protocol, steps=13, batch=16, ceiling_epochs=2, lrs=(0.002, 0.05))
    found = ceiling(dataset, source, rules, 2, "cpu", 1)
    steps = -(-len(dataset.train) // 16)
    epochs = max(2, -(-13 // steps))
    assert found["epochs"] == epochs
    assert found["images"] == len(dataset.train)
    network = Network(source, dataset.train.shape, dataset.train.classes, CPU)
    recipe = rules.recipe(epochs).on(dataset.augment)

    def share(part: str, lr: float, data) -> float:
        seed = Seed(0) / "ceiling" / part
        student = fit(network, Student(network.init(seed / "init")), dataset.train, recipe, seed, lr=lr)
        return accuracy(network, student.vector, data)

    judged = {lr: share("judge", lr, dataset.validation) for lr in rules.lrs}
    assert found["lr"] == min(lr for lr in rules.lrs if judged[lr] == max(judged.values()))
    assert found["accuracies"] == [share(i, found["lr"], dataset.test) for i in (0, 1)]


def test_a_set_for_other_classes_is_refused_with_six_names_at_most(made):
    distilled, dataset, _ = made
    for count, shown in ((3, "a, b, c"), (6, "a, b, c, d, e, f"), (7, r"a, b, c, d, e, f, \.\.\. \(7 in all\)")):
        with pytest.raises(DataError, match=f"distilled for the classes {shown}, but dataset"):
            replace(distilled, classes=tuple("abcdefg"[:count])).check_dataset(dataset)


def test_an_evaluation_that_ended_before_it_was_called_complete_is_completed_without_training(
    plan, tmp_path, monkeypatch
):
    record = graded(plan, tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(record | {"complete": False}))
    monkeypatch.setattr("ddbench.grade.student.teach", None)
    assert graded(plan, tmp_path) == record
    assert json.loads(path.read_text())["complete"]


def test_metrics_that_were_measured_before_stay(plan, tmp_path):
    @dataclass(frozen=True)
    class Share:
        name = "share"

        def __call__(self, logits, targets):
            return 0.25

    graded(replace(plan, metrics={"ece": default_metrics()["ece"]}), tmp_path)
    both = graded(replace(plan, metrics={"share": Share()}), tmp_path)
    assert both["metrics"] == {"ece": 2, "share": 2}
    assert [set(s) for s in both["students"]] == [{"accuracy", "ece", "share"}] * 2
    assert re.fullmatch("[0-9a-f]{12}", both["key"])


def test_where_nothing_is_selected_the_sets_keep_their_learning_rate_even_if_tuning_is_asked_for(plan, tmp_path):
    last = replace(plan, protocol=replace(plan.protocol, selects="last", lrs=(0.1,)), tune=True, students=1)
    record = graded(last, tmp_path)
    assert "tried" not in record
    assert record["lrs"] == [s.lr or plan.distilled.teaching.recipe.lr for s in plan.distilled.curriculum.sets]
    for selects in ("validation", "test"):
        rules = replace(plan.protocol, selects=selects, lrs=(0.1,))
        assert "0.1" in graded(replace(last, protocol=rules), tmp_path)["tried"]
