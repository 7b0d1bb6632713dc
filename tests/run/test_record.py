"""Runs as records: files of older and of newer versions, damaged ones, and that nothing of a file is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddbench.base.cache import digest, write_json
from ddbench.base.schema import LARGEST
from ddbench.errors import DataError
from ddbench.run.folder import finished
from ddbench.run.record import EvaluationRecord, ResultRecord, RunRecord, SpecRecord
from ddbench.run.row import COLUMNS, Row

SPEC: dict[str, Any] = {
    "dataset": {"name": "toy", "options": {"root": "/data", "zca": True}},
    "matcher": {"name": "dm", "options": {}},
    "scheduler": {"name": "single"},
    "network": {"name": "convnet"},
    "protocol": {"name": "default"},
    "ipc": 1,
    "seed": 0,
}
GRADED: dict[str, Any] = {
    "complete": True,
    "students": [{"accuracy": 0.5}, {"accuracy": 0.75, "ece": 0.25}],
    "network": "convnet",
    "protocol": "default",
    "dataset": "toy",
    "dataset_digest": "d",
}


def stored(folder: Path, **files: Any) -> Path:
    """A run folder with a spec, and with these files: ``result``, ``dataset``, ``evaluation``."""
    places = {"evaluation": "evaluations/0.json"}
    for name, value in ({"spec": SPEC} | files).items():
        write_json(folder / places.get(name, f"{name}.json"), value)
    return folder


def test_a_run_of_a_version_that_recorded_less_has_defaults(tmp_path):
    run = RunRecord.read(stored(tmp_path / "a", result={"status": "ok"}, evaluation=GRADED))
    assert (run.run, run.spec.protocol_digest, run.spec.decoder, run.result.stages) == ("a", None, {}, [])
    (row,) = run.rows()
    assert (row.protocol_digest, row.versions, row.student_lr, row.together) == (
        digest({"name": "default"}),
        "",
        None,
        None,
    )
    assert (row.accuracy_mean, row.n, row.metrics) == (0.625, 2, {"ece_mean": 0.25})
    assert row.options == {"dataset.zca": True}


def test_a_run_without_a_result_is_incomplete_on_the_data_that_it_was_started_on(tmp_path):
    (row,) = RunRecord.read(stored(tmp_path, dataset={"name": "toy", "digest": "d"})).rows()
    assert (row.status, row.n, row.dataset_digest, row.distil_digest) == ("incomplete", 0, "d", "d")


def test_what_a_newer_version_adds_is_kept_and_no_metric_needs_to_be_known(tmp_path):
    students = [{"accuracy": 0.5, "curve.20": 0.25, "model_dump": 3}]
    newer = GRADED | {"students": students, "colour": {"of": ["it"]}}
    run = RunRecord.read(stored(tmp_path, result={"status": "ok", "weather": [1.0, None]}, evaluation=newer))
    assert run.evaluations[0].json_value() == newer
    assert run.result.json_value() == {"status": "ok", "weather": [1.0, None]}
    assert run.rows()[0].metrics == {"curve.20_mean": 0.25, "model_dump_mean": 3}


@pytest.mark.parametrize(
    ("name", "change", "wrong"),
    [
        ("spec", {"ipc": "one"}, r"ipc: .*integer"),
        ("spec", {"matcher": {}}, r"matcher\.name: Field required"),
        ("result", {"peak_bytes": "a lot"}, r"peak_bytes: .*should be a number"),
        ("result", {"status": 1}, "status: "),
        ("dataset", {"digest": 7}, "digest: "),
        ("evaluation", {"students": {}}, "students: .*list"),
        ("evaluation", {"students": [{"accuracy": 1, "ece": "x"}]}, r"students\.0\.ece: .*should be a number"),
        ("evaluation", {"students": [{"accuracy": True}]}, r"students\.0\.accuracy: .*should be a number"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it_and_the_way_out(tmp_path, name, change, wrong):
    whole = {"spec": SPEC, "result": {"status": "ok"}, "dataset": {"name": "toy"}, "evaluation": GRADED}
    folder = stored(tmp_path, **whole | {name: whole[name] | change})
    file = "0.json" if name == "evaluation" else f"{name}.json"
    way = "restore it, or delete its folder" if name == "spec" else "delete it to have it made again"
    with pytest.raises(DataError, match=rf"{file} is damaged \({wrong}.*\); {way}$") as said:
        RunRecord.read(folder)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("text", ["{", "[]", "null", '"text"'])
def test_a_file_that_holds_something_else_is_damaged(tmp_path, text):
    folder = stored(tmp_path)
    (folder / "result.json").write_text(text)
    for read in (RunRecord.read, finished):
        with pytest.raises(DataError, match=r"result\.json is .*; delete it to have it made again"):
            read(folder)


def test_a_folder_without_a_spec_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*spec\.json"):
        RunRecord.read(tmp_path)


def test_a_record_does_not_change(tmp_path):
    run = RunRecord.read(stored(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        run.spec.seed = 1


def test_the_setting_is_all_but_the_seed_the_machine_and_where_the_data_lie():
    spec = SpecRecord.model_validate(SPEC)
    same = ({"seed": 5}, {"threads": 8}, {"device": "cuda"}, {"dataset": {"name": "toy", "options": {"zca": True}}})
    assert {SpecRecord.model_validate(SPEC | change).setting for change in same} == {spec.setting}
    here = {"seed": None, "device": None, "threads": None, "declared": None, "versions": {}}
    by_hand = SPEC | here | {"dataset": {"name": "toy", "options": {"zca": True}}}
    assert spec.setting == digest(by_hand)[:12]


def test_the_setting_holds_the_versions_that_plugins_declare_and_not_those_of_their_packages():
    def setting(version: str, **declared: str) -> str:
        return SpecRecord.model_validate(SPEC | {"versions": {"matcher dm": version}, "declared": declared}).setting

    assert setting("ddbench 0.1.0") == setting("ddbench 0.2.0") == setting("ddbench 1", **{"matcher dm": "1"})
    others = {setting("another 0.1.0"), setting("ddbench 0.1.0", **{"matcher dm": "2"}), setting("ddbench 0.1.0")}
    assert len(others) == 3


def test_students_that_diverged_and_students_to_come_are_a_status():
    run = {"run": "a", "spec": SPEC, "result": {"status": "ok"}}

    def status(**change: Any) -> tuple[str, str | None]:
        (row,) = RunRecord.model_validate(run | {"evaluations": [GRADED | change]}).rows()
        return row.status, row.error

    assert status() == ("ok", None)
    assert status(complete=False) == ("evaluating", None)
    lost = [{"accuracy": 0.1, "diverged": 1.0}, {"accuracy": 0.5}]
    assert status(students=lost, complete=False) == ("diverged", "1 of 2 students diverged")


def test_programs_find_every_column_in_every_row():
    row = Row(dataset="toy", matcher="all 5 training images")
    assert tuple(row.cells) == COLUMNS  # of no run: nothing of what a set was made from
    (own,) = RunRecord.model_validate({"run": "a", "spec": SPEC}).rows()
    assert tuple(own.cells)[: len(COLUMNS)] == COLUMNS
    assert "distil_digest" in own.cells


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-LARGEST, LARGEST) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(0, 2**60) | st.floats(-LARGEST, LARGEST)
FRACTIONS = st.integers(0, 1) | st.floats(0, 1)
SEEDS = st.integers(-(2**63), 2**63 - 1)
# Fields that this version does not know. Hypothesis also tries words out of the code, which it does know.
MORE = st.dictionaries(st.text().map("later {}".format), JSON, max_size=3)


def kept(record: Any) -> str:
    """What a record gives back, as a file would hold it: 1 and 1.0 are not the same."""
    return json.dumps(record.json_value(), sort_keys=True)


@given(MORE, st.dictionaries(st.text(), JSON, max_size=4), SEEDS, NUMBERS, FRACTIONS)
def test_what_is_read_is_what_was_written(more, options, seed, number, accuracy):
    spec = more | SPEC | {"seed": seed, "matcher": {"name": "dm", "options": options}, "experts": options}
    result = more | {"status": "ok", "distil_seconds": number, "machine": {"device": "a CPU"}}
    stage = {"steps": 3, "checks": [{"step": 1, "lr": number, "accuracy": None, "tried": {"0.1": accuracy}}]}
    result |= {"stages": [more | stage]}
    graded = more | GRADED | {"students": [{"accuracy": accuracy, "ece": number}]}
    for model, value in ((SpecRecord, spec), (ResultRecord, result), (EvaluationRecord, graded)):
        assert kept(model.model_validate(value)) == json.dumps(value, sort_keys=True)
    whole = {"run": "a", "spec": spec, "result": result, "evaluations": [graded]}
    assert kept(RunRecord.model_validate(whole)) == json.dumps(whole, sort_keys=True)


def test_reading_loads_neither_torch_nor_plugins():
    code = (
        "import sys, ddbench.run.record, ddbench.results.compare; "
        "sys.exit(bool({'torch', 'pandas', 'pluggy', 'ddbench.plugins'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
