"""``ddbench eval``: what is selected anew, which metrics are computed, and what the numbers are doubted for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import pytest
import torch
from tiny import RULES, ddbench, run, spec

from ddbench import DataError, Examinee, UsageError
from ddbench.base.cache import read_json, write_json
from ddbench.files.asked import EvalOptions
from ddbench.files.class_order import Reordered, misordered
from ddbench.files.target import evaluated, opened, planned
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import altered
from ddbench.plugins import Plugin, registry
from ddbench.run.record import EvaluationRecord, RunRecord
from ddbench.run.row import Row


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A home and a run of random images with two students."""
    base = tmp_path_factory.mktemp("evaluating")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DDBENCH_HOME", str(base / "home"))
        folder = run(base / "runs", spec("random", "single", 2), students=2)
    return base / "home", folder


@pytest.fixture
def folder(shop, tmp_path, monkeypatch) -> Path:
    """A copy of the run that a test may add evaluations to."""
    import shutil

    monkeypatch.setenv("DDBENCH_HOME", str(shop[0]))
    return Path(shutil.copytree(shop[1], tmp_path / shop[1].name))


def only(folder: Path) -> dict:
    (path,) = (folder / "evaluations").glob("*.json")
    return read_json(path)


def asked(folder: Path, **options) -> list[Row]:
    return evaluated(str(folder), folder.parent, EvalOptions(**({"students": 2, "device": "cpu"} | options)))


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("dataset", {"options": {"colour": 1}}, "dataset has no option 'colour'"),
        ("dataset", {"name": "elsewhere"}, "no dataset called 'elsewhere'"),
        ("dataset", {"options": {"per_class": -1}}, "dataset.per_class: "),
        ("protocol", {"colour": 1}, "protocol has no option 'colour'"),
    ],
)
def test_what_a_file_says_and_nobody_typed_is_the_files_fault(folder, kind, change, said):
    distilled = Distilled.load(folder / "distilled.safetensors")
    held = distilled.about["spec"]
    changed = replace(distilled, about=distilled.about | {"spec": held | {kind: held[kind] | change}})
    with pytest.raises(DataError, match=f"the file names a {kind} that cannot be made here: {said}.*; get its plugin"):
        planned(changed, EvalOptions(students=1, device="cpu"))
    with pytest.raises(UsageError, match=r"^dataset has no option 'colour'"):
        planned(distilled, EvalOptions(students=1, device="cpu", flags=(("dataset.colour", "1"),)))


# --------------------------------------------------------------------------------- what is selected anew


@pytest.mark.parametrize(
    ("options", "tuned"),
    [
        ({}, False),
        ({"seed": 7}, False),
        ({"network": "mlp"}, True),
        ({"flags": (("network.width", "4"),)}, True),
        ({"flags": (("protocol.batch", "3"),)}, True),
        ({"protocol": "default"}, True),
        ({"protocol": "mtt-paper"}, False),
        ({"flags": (("protocol.lrs", ""),)}, False),
    ],
)
def test_the_student_lr_is_selected_anew_where_it_was_selected_for_something_else(folder, options, tuned):
    """A protocol without a grid trusts the set's own lr."""
    source = opened(str(folder), folder.parent, EvalOptions())
    plan = planned(source.distilled, EvalOptions(**({"device": "cpu"} | options)))
    assert plan.evaluation.tune is tuned


def test_an_evaluation_on_another_network_records_what_was_tried_on_validation_data(folder):
    seen = []
    from ddbench.grade.student import accuracy

    def noted(network, vector, data):
        seen.append(data.digest)
        return accuracy(network, vector, data)

    flags = (("network.width", "4"), ("protocol.lrs", "0.001,0.1"), ("protocol.judges", "2"))
    with patch("ddbench.grade.selection.accuracy", noted):
        asked(folder, flags=flags)
    record = next(r for r in map(read_json, (folder / "evaluations").glob("*.json")) if "tried" in r)
    assert set(record["tried"]) == {"0.001", "0.1", "own"}
    best = max(record["tried"], key=record["tried"].__getitem__)
    assert record["tried"][record["student_lr"]] == record["tried"][best]
    assert set(seen) == {spec("random").dataset.load().validation.digest}
    assert len(seen) == 3 * 2
    assert record["selection"] == "validation"


def test_a_student_lr_that_was_selected_on_test_data_is_said_in_the_row(folder):
    flags = (("protocol.selects", "test"), ("protocol.lrs", "0.03,0.1"))
    (row,) = [r for r in asked(folder, flags=flags) if r.protocol != only_protocol(folder)]
    assert row.selection == "test"


def only_protocol(folder: Path) -> str:
    return read_json(folder / "spec.json")["protocol"]["name"]


def test_the_rules_of_an_evaluation_are_recorded_by_their_digest(folder):
    record, made = only(folder), spec("random", "single", 2)
    assert record["protocol_digest"] == made.protocol.digest
    assert RunRecord.read(folder).rows()[0].protocol_digest == made.protocol.digest
    other = [r for r in asked(folder, protocol="dc-paper", flags=(("protocol.epochs", "2"),)) if r.n == 2]
    assert len({row.protocol_digest for row in other}) == 2


def test_an_interrupted_evaluation_does_not_select_again(folder):
    flags = (("network.width", "4"),)
    asked(folder, flags=flags)
    path = next(p for p in (folder / "evaluations").glob("*.json") if "tried" in read_json(p))
    whole = read_json(path)
    write_json(
        path, whole | {"complete": False, "students": whole["students"][:1], "metrics": {"accuracy": 1, "ece": 1}}
    )
    with patch("ddbench.grade.evaluation.tuned", side_effect=AssertionError("selected again")):
        asked(folder, flags=flags)
    assert read_json(path) == whole


# --------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Weights:
    """Sees a whole student, and its past."""

    name = "weights"
    costly = True
    power: Annotated[int, "of the norm"] = 2

    def marks(self, steps: int) -> list[int]:
        return [1, steps, steps + 5]

    def examine(self, student: Examinee) -> dict[str, float]:
        assert [step for step, _ in student.trail] == [1, 12]
        assert torch.equal(student.trail[-1][1], student.vector)
        assert not torch.equal(student.trail[0][1], student.vector)
        few = student.test[torch.arange(3)].images  # some CPUs compute few images in another order than many
        torch.testing.assert_close(student.network.apply(student.vector, few, train=False), student.logits[:3])
        return {"norm": float(student.vector.norm(self.power))}


@pytest.fixture
def weights(monkeypatch):
    plugins = registry().plugins | {("metric", "weights"): Plugin("metric", "weights", Weights, "test", "0")}
    monkeypatch.setattr(registry(), "plugins", plugins)


def test_a_costly_metric_is_computed_only_when_asked_for(folder, weights):
    assert "weights.norm" not in only(folder)["students"][0]
    asked(folder)
    assert "weights.norm" not in only(folder)["students"][0]
    (row,) = asked(folder, metrics="accuracy,weights")
    record = only(folder)
    assert all(student["weights.norm"] > 0 for student in record["students"])
    assert row.metrics["weights.norm_mean"] == sum(s["weights.norm"] for s in record["students"]) / 2


def test_a_metric_that_comes_later_is_added_to_the_same_record(folder, weights):
    before = only(folder)
    asked(folder, metrics="weights")
    after = only(folder)
    assert [s["accuracy"] for s in after["students"]] == [s["accuracy"] for s in before["students"]]
    assert after["metrics"] == before["metrics"] | {"weights": 2}
    with patch("ddbench.grade.evaluation.measured_students", side_effect=AssertionError("trained again")):
        asked(folder, metrics="weights")


def test_other_options_of_a_metric_replace_its_numbers(folder, weights):
    asked(folder, metrics="weights")
    first = only(folder)["students"][0]["weights.norm"]
    asked(folder, metrics="weights", flags=(("metric.weights.power", "1"),))
    record = only(folder)
    assert record["students"][0]["weights.norm"] > first
    assert set(record["metrics"]) == {"accuracy", "ece", "weights(power=1)"}


def test_an_option_of_a_metric_asks_for_it(weights):
    chosen = EvalOptions(flags=(("metric.weights.power", "3"),)).chosen_metrics()
    assert chosen["weights"] == Weights(3)
    assert {"accuracy", "ece"} <= set(chosen)
    assert set(EvalOptions(metrics="all").chosen_metrics()) == set(registry().names("metric"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": "acuracy"}, "did you mean 'accuracy'"),
        ({"flags": (("metric.ece", "3"),)}, r"must be metric.NAME.OPTION"),
        ({"flags": (("metric.ece.bin", "3"),)}, "did you mean 'bins'"),
        ({"flags": (("metric.ece.bins", "0"),)}, r"metric.ece.bins"),
        ({"metrics": "accuracy", "flags": (("metric.ece.bins", "3"),)}, "--metrics leaves out"),
    ],
)
def test_metrics_that_are_not_there_are_refused_with_the_way_out(options, said):
    with pytest.raises(UsageError, match=said):
        EvalOptions(**options).chosen_metrics()


def test_a_student_that_does_not_come_out_as_recorded_is_an_error(folder, weights):
    (path,) = (folder / "evaluations").glob("*.json")
    record = read_json(path)
    record["students"][0]["accuracy"] = (record["students"][0]["accuracy"] + 0.5) % 1
    write_json(path, record)
    with pytest.raises(DataError, match="delete"):
        asked(folder, metrics="weights")


# --------------------------------------------------------------------------------- other data, other orders


def renamed(folder: Path, **about) -> Path:
    """The run's set, said to be distilled from something else."""
    distilled = Distilled.load(folder / "distilled.safetensors")
    changed = distilled.about | {"dataset": distilled.about["dataset"] | about}
    path = folder.parent / "other.safetensors"
    replace(distilled, about=changed).save(path)
    return path


def test_a_set_of_another_dataset_is_refused_unless_that_is_what_is_wanted(folder):
    path = renamed(folder, name="toys")
    options = EvalOptions(students=1, device="cpu")
    with pytest.raises(DataError, match=r"distilled from dataset 'toys', not from 'toy'.*--transfer"):
        evaluated(str(path), folder, options)
    assert evaluated(str(path), folder, replace(options, transfer=True))[0].n == 1


def test_data_with_other_options_than_the_set_was_made_from_are_noted(folder):
    said: list[str] = []
    evaluated(str(renamed(folder, digest="0" * 64)), folder, EvalOptions(students=1, device="cpu"), said.append)
    assert any("not bit for bit what the set was distilled from" in line for line in said)
    said.clear()
    evaluated(str(folder), folder, EvalOptions(students=2, device="cpu"), said.append)
    assert said == []


def test_the_best_renaming_of_classes_is_found():
    targets = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    answers = torch.tensor([1, 1, 2, 2, 2, 2, 0, 0, 1])  # 0 -> 1, 1 -> 2, 2 -> 0 but for two
    logits = torch.eye(3)[answers]
    assert Reordered()(logits, targets) == pytest.approx(7 / 9)
    assert Reordered()(torch.eye(3)[targets], targets) == 1.0


def graded(students: list[dict[str, float]]) -> EvaluationRecord:
    about = {"network": "convnet", "protocol": "default", "dataset": "toy", "dataset_digest": "d"}
    return EvaluationRecord.model_validate({"complete": True, "students": students, **about})


def test_a_set_whose_classes_stand_in_another_order_is_doubted():
    students = [{"accuracy": 0.1, "reordered": 0.7}, {"accuracy": 0.2, "reordered": 0.8}]
    said = misordered(graded(students))
    assert said is not None
    assert "15.0 %" in said
    assert "75.0 %" in said
    assert misordered(graded([{"accuracy": 0.7, "reordered": 0.71}])) is None
    assert misordered(graded([{"accuracy": 0.7}])) is None


def test_a_foreign_set_needs_its_dataset_named(tmp_path):
    (tmp_path / "found").mkdir()
    answer = ddbench("eval", tmp_path / "found")
    assert answer.code == 2
    assert "name the dataset with --dataset" in answer.err


def test_students_may_train_together_when_asked(folder):
    flags = (("protocol.steps", "8"),)
    (apart, *_), (together, *_) = (
        [r for r in asked(folder, flags=flags, together=way) if r.steps == 8] for way in (False, True)
    )
    assert apart.n == together.n == 2
    both = [read_json(p) for p in (folder / "evaluations").glob("*.json")]
    assert len([r for r in both if r["steps"] == 8]) == 2  # two records: their last bits differ


# --------------------------------------------------------------------------------- what reviewers tried


def test_a_protocol_option_that_is_said_again_changes_neither_name_nor_rules(folder):
    before = RunRecord.read(folder).rows()
    again = asked(folder, flags=(("protocol.steps", "12"), ("protocol.judges", "1")))
    assert [r.protocol_digest for r in again] == [r.protocol_digest for r in before]
    name = spec("random").protocol.name
    other = altered(spec("random").protocol, {"steps": "13"})
    assert other.name.count("-custom-") == 1
    assert altered(other, {"steps": "12"}).name == name


def test_a_protocol_by_name_means_what_it_means_to_a_run_on_the_dataset(folder):
    """The recipe of the dataset sets N of the default protocol."""
    source = opened(str(folder), folder.parent, EvalOptions())
    plan = planned(source.distilled, EvalOptions(protocol="default", device="cpu"))
    from ddbench.run.spec import Request, resolve

    assert plan.evaluation.protocol == resolve(Request("toy", "random", ipc=2, device="cpu")).spec.protocol
    assert plan.evaluation.protocol.steps == 200


def test_students_that_diverge_are_a_status_and_no_traceback(folder):
    rows_ = asked(folder, flags=(("protocol.lrs", ""), ("protocol.steps", "8"), ("network.norm", "none")))
    assert {row.status for row in rows_} == {"ok"}
    with patch("ddbench.grade.student.predict", lambda *_: (torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0]))):
        lost = asked(folder, flags=(("protocol.steps", "9"),))
    (row,) = [row for row in lost if row.status == "diverged"]
    assert row.error == "2 of 2 students diverged"
    assert row.accuracy_mean == 0.5  # what nothing answers: the first class


def test_one_student_has_no_deviation(folder):
    (row,) = [row for row in asked(folder, students=1) if row.n == 1]
    assert row.accuracy_std is None


def test_the_student_lr_in_use_is_in_the_row(folder):
    assert RunRecord.read(folder).rows()[0].student_lr == "0.03"


@pytest.mark.parametrize("options", [{"pixels": "unit"}, {"labels": "hard"}, {"experiment": 2}])
def test_options_for_sets_of_other_tools_are_refused_for_our_own(folder, options):
    with pytest.raises(UsageError, match="is for sets of other tools"):
        opened(str(folder), folder.parent, EvalOptions(**options))


@pytest.mark.parametrize("options", [{"metrics": " "}, {"network": ","}])
def test_empty_lists_are_refused(folder, options):
    with pytest.raises(UsageError, match="is empty"):
        asked(folder, **options)


def test_of_several_networks_one_that_cannot_be_is_said_before_any_trains(folder):
    with patch("ddbench.files.target.evaluate", side_effect=AssertionError("trained")), pytest.raises(UsageError):
        asked(folder, network="mlp,lenet")


def foreign(tmp_path: Path, folder: Path) -> Path:
    """The run's set as MTT would store it, in the dataset's own space."""
    from ddbench.files.exporter import export

    export(Distilled.load(folder / "distilled.safetensors"), "pt", tmp_path / "mtt")
    return tmp_path / "mtt"


def test_a_set_of_others_stands_in_the_tables_like_a_run(folder, tmp_path):
    path = foreign(tmp_path, folder)
    out = tmp_path / "out"
    flags = tuple((name, str(value)) for name, value in RULES.items() if not name.startswith("experts"))
    options = EvalOptions(students=2, device="cpu", dataset="toy", pixels="dataset", flags=flags)
    (row,) = evaluated(str(path), out, options)
    (made,) = out.iterdir()
    assert RunRecord.read(made).rows() == [row]
    assert (row.matcher, row.selection, row.n) == ("imported", "unknown", 2)
    assert row.protocol_digest == RunRecord.read(folder).rows()[0].protocol_digest  # the same rules as a run's
    assert row.label_type == "hard"
    again = evaluated(str(path), out, options)
    assert again == [row]


def test_an_imported_file_is_known_by_its_content(folder, tmp_path):
    import shutil

    path = shutil.copy(folder / "distilled.safetensors", tmp_path / "set.txt")
    assert len(opened(str(path), tmp_path, EvalOptions()).distilled.classes) == 3
    assert opened(str(path), tmp_path, EvalOptions()).folder is None


# --------------------------------------------------------------------------------- files of strangers


def told(folder: Path, place: str, value: object) -> Path:
    """The run's set in a file of its own, one thing in its document changed, and its digest made to fit."""
    import json

    from ddbench.base.tensors import load_tensors, save_tensors
    from ddbench.grade.distilled import _digest

    tensors, metadata = load_tensors(folder / "distilled.safetensors")
    document = json.loads(metadata["ddbench"])
    document.pop("sha256")
    at = document
    *before, last = place.split("/")
    for name in before:
        at = at[name]
    at[last] = value
    document["sha256"] = _digest(document, tensors)
    path = folder.parent / "given.safetensors"
    save_tensors(path, tensors, {"ddbench": json.dumps(document)})
    return path


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "..", "x" * 300, "\x1b[2J", ".hidden"])
@pytest.mark.parametrize("group", ["matcher", "dataset", "scheduler", "network"])
def test_what_a_file_says_leads_to_no_other_folder(folder, tmp_path, group, name):
    path = told(folder, f"about/spec/{group}/name", name)
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(DataError, match=f"{group}"):
        evaluated(str(path), tmp_path / "out", EvalOptions(students=1, device="cpu"))
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_file_with_a_long_or_odd_name_gets_a_folder_that_can_be(folder, tmp_path):
    path = told(folder, "about/selection", "validation").rename(tmp_path / f"{'日' * 70}.. ;x.safetensors")
    (row,) = evaluated(str(path), tmp_path, EvalOptions(students=1, device="cpu"))
    assert row.run is not None
    assert len(row.run.encode()) < 255
    assert ";" not in row.run


def test_data_that_may_be_anywhere_are_the_users_to_name(folder, tmp_path):
    """Nothing is asked for, and nothing is imported that could ask."""
    path = told(folder, "about/spec/dataset", {"name": "hf", "options": {"path": "attacker/beacon"}})
    options = EvalOptions(students=1, device="cpu")
    with patch("ddbench_datasets.hf._opened", side_effect=DataError("asked the network")):
        for asked_for in (options, replace(options, dataset="hf")):
            with pytest.raises(UsageError, match=r"attacker/beacon.*--dataset hf:NAME_OR_FOLDER, or --fetch"):
                evaluated(str(path), tmp_path, asked_for)
        for asked_for in (replace(options, fetch=True), replace(options, dataset="hf:mine/own")):
            with pytest.raises(DataError, match="asked the network"):
                evaluated(str(path), tmp_path, asked_for)


def test_data_that_would_be_downloaded_are_the_users_to_name_unless_they_are_here(folder, tmp_path, monkeypatch):
    path = told(folder, "about/spec/dataset", {"name": "mnist", "options": {}})
    options = EvalOptions(students=1, device="cpu")
    cls = registry().get("dataset", "mnist").cls
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cls, "load", lambda self: (_ for _ in ()).throw(DataError("asked the network")))
    with pytest.raises(UsageError, match=r"names the dataset 'mnist', which is not here.*--dataset mnist.*--fetch"):
        evaluated(str(path), tmp_path, options)
    for asked_for in (replace(options, fetch=True), replace(options, dataset="mnist")):
        with pytest.raises(DataError, match="asked the network"):
            evaluated(str(path), tmp_path, asked_for)
    monkeypatch.setattr(cls, "missing", lambda self: None)  # they are here: the file may name them
    with pytest.raises(DataError, match="asked the network"):
        evaluated(str(path), tmp_path, options)


@pytest.mark.parametrize("options", [{"width": 10**7}, {"depth": 10**6, "pooling": "none"}])
def test_a_network_beyond_all_measure_is_the_users_to_name(folder, tmp_path, options):
    path = told(folder, "network", {"name": "convnet", "options": options})
    with pytest.raises(DataError, match="another one than the run's"):
        evaluated(str(path), tmp_path, EvalOptions(students=1, device="cpu"))
    distilled = Distilled.load(folder / "distilled.safetensors")
    wide = registry().get("network", "convnet").cls(**options)
    with pytest.raises(DataError, match="--network"):
        planned(replace(distilled, network=wide), EvalOptions(device="cpu"))


def test_a_set_that_says_nothing_of_its_task_is_refused(folder, tmp_path):
    path = told(folder, "about/spec", None)
    with pytest.raises(DataError, match="import it again"):
        evaluated(str(path), tmp_path, EvalOptions(students=1, device="cpu"))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_a_sentence(tmp_path, name):
    with pytest.raises((DataError, UsageError)):
        opened(name, tmp_path, EvalOptions())
