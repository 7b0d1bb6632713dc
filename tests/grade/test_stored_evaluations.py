"""Evaluations as files: believed only as they were written, and written by one process at a time."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ddbench, run, spec

from ddbench.base.cache import Cache, home, read_json
from ddbench.base.progress import noting
from ddbench.errors import DamagedError, DataError
from ddbench.grade import evaluation
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation, ceiling, default_metrics, evaluate


@pytest.fixture(scope="module")
def folder(module_home, tmp_path_factory) -> Path:
    """A finished run."""
    return run(tmp_path_factory.mktemp("runs"), spec("random", "single", 1), students=2)


@pytest.fixture
def plan(folder) -> Evaluation:
    made = spec("random", "single", 1)
    distilled = Distilled.load(folder / "distilled.safetensors")
    return Evaluation(distilled, made.dataset.load(), made.protocol, 2, "cpu")


def graded(plan: Evaluation, folder: Path) -> dict[str, Any]:
    return evaluate(plan, folder, threads=1, seed=0)


def test_an_evaluation_is_read_and_not_done_again_also_where_nothing_may_be_written(plan, tmp_path, monkeypatch):
    first = graded(plan, tmp_path)
    (tmp_path / f".{first['key']}.lock").unlink()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("again")

    monkeypatch.setattr(evaluation, "measured_students", never)
    monkeypatch.setattr(evaluation, "lock", never)
    assert graded(plan, tmp_path) == first


def test_an_accuracy_that_was_edited_is_refused_with_what_to_do_and_doing_it_helps(plan, tmp_path):
    first = graded(plan, tmp_path)
    (path,) = tmp_path.glob("*.json")
    text = path.read_text()
    accuracy = json.dumps(first["students"][0]["accuracy"])
    path.write_text(text.replace(f'"accuracy": {accuracy}', '"accuracy": 0.999', 1))
    said = (
        rf"{path} is damaged: it was edited.*; delete it and run the same command again: its students are trained anew"
    )
    with pytest.raises(DamagedError, match=said):
        graded(plan, tmp_path)
    path.unlink()
    assert graded(plan, tmp_path) == first
    assert path.read_text() == text


@pytest.mark.parametrize(
    "words",
    [
        "[]",
        "{}",
        "",
        "null",
        "3",
        '{"complete": true, "metrics": {}}',
        '{"complete": true, "students": [{"accuracy": NaN}], "metrics": {}}',
        '{"complete": true, "students": [{"accuracy": 1e999}], "metrics": {}}',
        '{"complete": true, "students": [{"accuracy": 1.5}], "metrics": {}}',
        '{"complete": true, "students": [{"accuracy": "0.5"}], "metrics": {}}',
        '{"complete": true, "students": [{"ece": 0.5}], "metrics": {}}',
        '{"complete": true, "students": [0.5], "metrics": {}}',
        '{"complete": true, "students": {}, "metrics": {}}',
        '{"complete": 1, "students": [], "metrics": {}}',
        '{"complete": true, "students": [], "metrics": {"ece(bins=15)": -1}}',
        '{"complete": true, "students": [], "metrics": {"ece(bins=15)": "2"}}',
        '{"complete": true, "students": [], "metrics": []}',
        '{"complete": false, "students": [], "metrics": {}, "student_lr": 3}',
        "[" * 100_000,
    ],
)
def test_a_damaged_evaluation_is_one_sentence(plan, tmp_path, words):
    graded(plan, tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(words)
    with pytest.raises(DataError, match=r"^[^\n]*\.json is [^\n]*; delete it and run the same command again: [^\n]*$"):
        graded(plan, tmp_path)


def test_an_evaluation_of_an_earlier_version_without_a_seal_is_read_and_added_to(plan, tmp_path):
    first = graded(replace(plan, metrics={}), tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(read_json(path)))
    later = graded(plan, tmp_path)
    assert [s["accuracy"] for s in later["students"]] == [s["accuracy"] for s in first["students"]]
    assert len(later["metrics"]) == len(default_metrics())


def test_an_edited_accuracy_does_not_reach_a_table(folder, tmp_path):
    import shutil

    copy = tmp_path / "runs" / folder.name
    shutil.copytree(folder, copy)
    (path,) = (copy / "evaluations").glob("*.json")
    path.write_text(path.read_text().replace('"accuracy": 0.', '"accuracy": 0.9'))
    seen = ddbench("compare", copy, "--format", "json")
    assert "is damaged" in seen.err + seen.out
    assert "0.9" not in seen.out


@pytest.mark.parametrize("round_", range(3))
def test_two_evaluations_at_once_lose_no_metric(plan, tmp_path, monkeypatch, round_):
    metrics = default_metrics()
    assert len(metrics) > 1
    names = list(metrics)[:2]
    ready = threading.Barrier(2)
    genuine = evaluation.lock

    def together(path: Path) -> Any:
        ready.wait(30)  # both have looked, and neither has written
        return genuine(path)

    monkeypatch.setattr(evaluation, "lock", together)
    work = [
        threading.Thread(target=graded, args=(replace(plan, metrics={name: metrics[name]}), tmp_path)) for name in names
    ]
    for one in work:
        one.start()
    for one in work:
        one.join()
    (path,) = tmp_path.glob("*.json")
    record = read_json(path)
    assert {words.partition("(")[0] for words in record["metrics"]} == set(names)
    assert set(record["metrics"].values()) == {2}
    assert len(record["students"]) == 2


@pytest.mark.parametrize(
    "words", ["[]", "", "{}", "edited", '{"accuracies": [NaN], "lr": 1, "images": 1, "epochs": 1}']
)
def test_a_damaged_ceiling_is_trained_again_to_the_same_numbers_with_one_line_that_says_so(
    module_home, monkeypatch, words
):
    monkeypatch.setenv("DDBENCH_HOME", module_home)
    made = spec("random", "single", 1)
    dataset, said = made.dataset.load(), []

    def top() -> dict[str, Any]:
        return ceiling(dataset, made.network, made.protocol, 1, "cpu", 1)

    first = top()
    (path,) = Cache(home()).root.glob("ceilings/*/ceiling.json")
    text = path.read_text()
    path.write_text(text.replace('"images": ', '"images": 1') if words == "edited" else words)
    with noting(said.append):
        assert top() == first
        assert top() == first
    assert said == [f"{path} is damaged; it is made again"]
    assert path.read_text() == text
    assert torch.get_num_threads() == 1


def test_a_student_trained_again_has_its_accuracy_where_training_is_exact_and_on_a_gpu_keeps_what_is_on_record(
    tmp_path,
):
    path = tmp_path / "e.json"
    held = {"students": [{"accuracy": 0.5, "ece": 0.1}], "metrics": {"accuracy": 1, "ece": 1}}
    again, due = {"accuracy": 0.501, "corruptions": 0.3}, {"corruptions": "corruptions"}
    with pytest.raises(DataError, match=r"student 0 now has accuracy 0\.501"):
        evaluation._note(held, 0, again, due, path, exact=True)
    said: list[str] = []
    with noting(said.append):
        evaluation._note(held, 0, again, due, path, exact=False)
        evaluation._note(held, 0, {"accuracy": 0.5, "corruptions": 0.3}, due, path, exact=True)
    assert said == [f"student 0, trained again, has accuracy 0.501, and 0.5 on record in {path}"]
    assert held["students"] == [{"accuracy": 0.5, "ece": 0.1, "corruptions": 0.3}]
    assert held["metrics"] == {"accuracy": 1, "ece": 1, "corruptions": 1}
