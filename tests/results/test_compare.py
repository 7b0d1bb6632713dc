"""Rows from run folders, and the tables made of them."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, pstdev, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import ddbench

from ddbench.base.cache import digest, write_json
from ddbench.errors import DataError, UsageError
from ddbench.results import compare, tables
from ddbench.results.aggregate import per_run
from ddbench.results.compare import Ask
from ddbench.results.tables import PER_RUN, Table, render
from ddbench.results.where import divided, order, select
from ddbench.run.folder import find_run, run_folders
from ddbench.run.record import RunRecord
from ddbench.run.row import COLUMNS, Cells, Row


def folder(out: Path, name: str, *, result: dict[str, Any] | None = None, scores: list[list[float]] = ()) -> Path:
    """A run folder with what the tables read: the spec, the result, and evaluations with these accuracies."""
    spec = {
        "dataset": {"name": "toy", "options": {}},
        "matcher": {"name": "tesla", "options": {"labels": "teacher"}},
        "scheduler": {"name": "pdd", "options": {}},
        "network": {"name": "convnet", "options": {}},
        "ipc": 10,
        "seed": 3,
        "protocol": {"name": "default"},
    }
    write_json(out / name / "spec.json", spec)
    if result is not None:
        write_json(out / name / "result.json", {"dataset": {"name": "toy", "digest": "d" * 8}, **result})
    for i, students in enumerate(scores):
        write_json(out / name / "evaluations" / f"{i}.json", evaluation(students))
    return out / name


def evaluation(scores: list[float], **more: Any) -> dict[str, Any]:
    students = [{"accuracy": score, "ece": score / 10} for score in scores]
    about = {"network": "convnet(width=8)", "protocol": "default", "dataset": "toy", "dataset_digest": "d" * 8}
    return {"complete": True, "students": students, "n": len(scores), **about, **more}


DONE = {
    "status": "ok",
    "selection": "validation",
    "steps": 1000,
    "label_type": "teacher",
    "distil_seconds": 12.4,
    "selection_seconds": 1.0,
    "expert_seconds": 33.6,
    "peak_bytes": 5 * 2**20,
    "image_bytes": 2000,
    "label_bytes": 400,
    "machine": {"device": "a CPU"},
}


def line(**more: Any) -> Row:
    """One evaluation of a run, as ``ddbench.run.record`` reads it."""
    base = {
        "dataset": "toy",
        "dataset_digest": "d" * 8,
        "matcher": "tesla",
        "scheduler": "single",
        "network": "convnet",
        "ipc": 1,
        "seed": 0,
        "protocol": "default",
        "protocol_digest": "aaaaaaaabbbb",
        "label_type": "hard",
        "status": "ok",
        "selection": "validation",
        "n": 2,
        "accuracy_mean": 0.5,
        "accuracy_std": 0.1,
        "options": {"matcher.labels": "hard", "decoder.factor": 1},
    }
    return Row(**base | more)


def runs(matcher: str, scores: list[float | None], **more: Any) -> list[Row]:
    """Runs of one setting with seeds 0, 1, ...; those without an accuracy diverged."""
    bad = {"status": "diverged", "n": 0, "accuracy_std": None, "dataset_digest": "d" * 8}
    return [
        line(
            **{"matcher": matcher, "seed": seed, "accuracy_mean": score, "run": f"{matcher}-{seed}"}
            | (bad if score is None else {})
            | more
        )
        for seed, score in enumerate(scores)
    ]


def compared(rows: list[Row], **ask: Any) -> list[Cells]:
    return list(compare.compared(rows, Ask(**ask))[0].rows)


def by_matcher(rows: list[Row], **ask: Any) -> dict[str, Cells]:
    return {row["matcher"]: row for row in compared(rows, **ask)}


def captions(rows: list[Row], **ask: Any) -> str:
    return "\n".join(compare.compared(rows, Ask(**ask))[0].notes())


RANDOM = [0.50, 0.51, 0.49, 0.52, 0.53]
BETTER = [0.60, 0.62, 0.58, 0.63, 0.61]


def test_the_row_of_a_run_has_the_mean_and_the_deviation_over_students(tmp_path):
    scores = [0.5, 0.6, 0.9]
    (row,) = RunRecord.read(folder(tmp_path, "a", result=DONE, scores=[scores])).rows()
    assert row.accuracy_mean == pytest.approx(mean(scores))
    assert row.accuracy_std == pytest.approx(pstdev(scores))
    assert row.metrics["ece_mean"] == pytest.approx(mean(scores) / 10)
    assert row.n == 3
    assert (row.status, row.selection, row.steps, row.seed, row.ipc) == ("ok", "validation", 1000, 3, 10)
    assert (row.distil_seconds, row.expert_seconds, row.peak_bytes) == (12.4, 33.6, 5 * 2**20)
    assert (row.image_bytes, row.label_bytes, row.label_type) == (2000, 400, "teacher")
    assert (row.network, row.device, row.run) == ("convnet(width=8)", "a CPU", "a")
    assert list(row.cells)[: len(COLUMNS)] == list(COLUMNS)


def test_every_evaluation_of_a_run_is_a_row(tmp_path):
    found = RunRecord.read(folder(tmp_path, "a", result=DONE, scores=[[0.1], [0.2, 0.4]])).rows()
    assert sorted(row.n for row in found) == [1, 2]


def test_a_run_without_a_result_is_a_row_that_says_so(tmp_path):
    (row,) = RunRecord.read(folder(tmp_path, "a")).rows()
    assert (row.status, row.n, row.accuracy_mean) == ("incomplete", 0, None)
    (row,) = RunRecord.read(folder(tmp_path, "b", result={"status": "diverged", "error": "the loss exploded"})).rows()
    assert (row.status, row.n, row.error) == ("diverged", 0, "the loss exploded")


def test_an_evaluation_that_goes_on_is_not_shown_as_done(tmp_path):
    made = folder(tmp_path, "a", result=DONE)
    write_json(made / "evaluations" / "1.json", evaluation([0.5], complete=False) | {"n": 5})
    (row,) = RunRecord.read(made).rows()
    assert row.n == 1
    assert row.status != "ok"


def test_an_unreadable_result_names_the_file(tmp_path):
    made = folder(tmp_path, "a", result=DONE)
    (made / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"a/result\.json"):
        RunRecord.read(made).rows()


def test_only_folders_with_a_spec_are_runs(tmp_path):
    folder(tmp_path, "b")
    folder(tmp_path, "a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert [f.name for f in run_folders(tmp_path)] == ["a", "b"]
    assert run_folders(tmp_path / "none") == []


def test_a_run_is_found_by_folder_name_start_or_key(tmp_path):
    one = folder(tmp_path, "toy-tesla-single-ipc1-seed0-0123456789ab")
    two = folder(tmp_path, "toy-tesla-pdd-ipc1-seed0-fedcba987654")
    assert find_run(str(one), Path("elsewhere")) == one
    assert find_run(one.name, tmp_path) == one
    assert find_run("fedcba987654", tmp_path) == two
    assert find_run("toy-tesla-pdd", tmp_path) == two


def test_an_exact_name_wins_over_names_that_begin_with_it(tmp_path):
    one = folder(tmp_path, "run")
    folder(tmp_path, "run-2")
    assert find_run("run", tmp_path) == one


def test_an_ambiguous_or_unknown_run_is_an_error_with_the_way_out(tmp_path):
    folder(tmp_path, "toy-a")
    folder(tmp_path, "toy-b")
    with pytest.raises(DataError, match=r"'toy' could be any of toy-a, toy-b"):
        find_run("toy", tmp_path)
    with pytest.raises(DataError, match=r"no run 'x'.*ddbench list runs"):
        find_run("x", tmp_path)


def test_an_evaluation_without_a_digest_has_that_of_the_runs_protocol_or_its_name(tmp_path):
    made = folder(tmp_path, "a", result=DONE)
    write_json(made / "evaluations" / "1.json", evaluation([0.5]))
    write_json(made / "evaluations" / "2.json", evaluation([0.6], protocol="pdd-paper"))
    write_json(made / "evaluations" / "3.json", evaluation([0.7], protocol_digest="recorded", selection="test"))
    found = {row.accuracy_mean: row for row in RunRecord.read(made).rows()}
    assert found[0.5].protocol_digest == digest({"name": "default"})
    assert found[0.6].protocol_digest == "pdd-paper"
    assert (found[0.7].protocol_digest, found[0.7].selection) == ("recorded", "test")


def test_the_setting_of_a_run_is_all_but_its_seed_and_its_machine(tmp_path):
    """Seeds of one setting are replicates; another option, network or protocol is another setting."""
    spec = json.loads((folder(tmp_path, "a") / "spec.json").read_text())

    def setting(**change: Any) -> str:
        write_json(tmp_path / "a" / "spec.json", spec | change)
        return RunRecord.read(tmp_path / "a").rows()[0].setting

    same = [{"seed": 9}, {"device": "cuda"}, {"threads": 7}, {"dataset": {"name": "toy", "options": {"root": "x"}}}]
    other = [
        {"ipc": 11},
        {"network": {"name": "vit", "options": {}}},
        {"protocol": {"name": "default", "steps": 5}},
        {"dataset": {"name": "toy", "options": {"zca": True}}},
        {"versions": {"tesla": "ddbench 9"}},
    ]
    assert {setting(**change) for change in same} == {setting()}
    assert len({setting(**change) for change in [{}, *other]}) == 1 + len(other)


# ----------------------------------------------------------------------------------------------- lines


def test_runs_that_differ_only_in_their_seed_are_one_line():
    found = by_matcher(runs("random", RANDOM) + runs("tesla", BETTER))
    row = found["tesla"]
    assert (row["n"], row["seeds"], row["accuracies"], row["students"]) == (5, [0, 1, 2, 3, 4], BETTER, 2)
    assert row["accuracy_mean"] == pytest.approx(mean(BETTER))
    assert row["accuracy_std"] == pytest.approx(stdev(BETTER))
    low, high = stats.t.interval(0.95, 4, mean(BETTER), stdev(BETTER) / 5**0.5)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high))
    assert row["runs"] == [f"tesla-{seed}" for seed in range(5)]


def test_students_are_not_replicates():
    """A run of 100 students is one value, however little its students vary."""
    (row,) = compared(runs("tesla", [0.5], n=100))
    assert (row["n"], row["students"], row["accuracy_mean"]) == (1, 100, 0.5)
    assert row["accuracy_std"] is row["ci_low"] is row["ci_high"] is row["p"] is None
    assert tables.cell("accuracy_mean", row) == "50.0"
    assert tables.cell("ci_low", row) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"ipc": 2},
        {"network": "vit"},
        {"scheduler": "pdd"},
        {"dataset_digest": "other"},
        {"setting": "other"},
        {"options": {"matcher.steps": 9}},
        {"label_type": "teacher"},
        {"selection": "test"},
    ],
    ids=str,
)
def test_runs_that_differ_in_anything_else_are_lines_of_their_own(change):
    assert len(compared([*runs("tesla", BETTER), *runs("tesla", BETTER, **change)])) == 2


def test_settings_are_told_apart_even_where_no_column_shows_how():
    """Rows of run folders carry the digest of their spec: a student's batch size, say, is in no column."""
    assert len(compared([*runs("tesla", BETTER, setting="a"), *runs("tesla", BETTER, setting="b")])) == 2
    assert len(compared([*runs("tesla", BETTER, setting="a"), *runs("tesla", BETTER, setting="a")])) == 1


def test_an_evaluation_more_of_a_run_is_no_further_replicate():
    """Of two evaluations under the same rules that with the run's own seed counts, then the one of more students."""
    again = [
        line(run="tesla-0", n=50, evaluation_seed=7, accuracy_mean=0.9),
        line(run="tesla-0", n=2, evaluation_seed=0, accuracy_mean=0.1),
        line(run="tesla-0", n=5, evaluation_seed=0, accuracy_mean=0.4),
    ]
    for order_ in (again, again[::-1]):
        (row,) = compared(order_)
        assert (row["n"], row["accuracy_mean"], row["students"]) == (1, 0.4, 5)


def test_two_runs_of_one_seed_are_one_replicate():
    """The same spec on a CPU and on a GPU draws the same random numbers."""
    (row,) = compared([line(run="cpu", accuracy_mean=0.4), line(run="gpu", accuracy_mean=0.6)])
    assert (row["n"], row["accuracies"]) == (1, [0.5])


def test_options_that_differ_are_named_in_the_line():
    rows_ = [
        row
        for curvature in ("zero", "exact")
        for row in runs("tesla", BETTER, options={"matcher.curvature": curvature, "matcher.labels": "hard"})
    ]
    assert [tables.cell("matcher", row) for row in compared(rows_)] == [
        "tesla (curvature=exact)",
        "tesla (curvature=zero)",
    ]
    assert tables.cell("matcher", compared(rows_[:5])[0]) == "tesla"


def test_a_version_is_named_only_where_options_leave_lines_alike():
    def made(curvature: str, versions: str) -> list[Row]:
        return runs(
            "tesla",
            BETTER,
            options={"matcher.curvature": curvature},
            versions=versions,
            setting=f"{curvature} {versions}",
        )

    told = compared([*made("zero", "mine 1"), *made("exact", "mine 2")])
    assert [row["variant"] for row in told] == [" (curvature=exact)", " (curvature=zero)"]
    told = compared([*made("zero", "mine 1"), *made("zero", "mine 2")])
    assert [row["variant"] for row in told] == [" (version=mine 1)", " (version=mine 2)"]
    told = compared([*made("zero", "mine 1"), *made("zero", "mine 2"), *made("exact", "mine 2")])
    assert [row["variant"] for row in told] == [
        " (curvature=exact, version=mine 2)",
        " (curvature=zero, version=mine 1)",
        " (curvature=zero, version=mine 2)",
    ]


def test_a_method_has_one_name_at_every_ipc_and_under_every_scheduler():
    zero, exact = ({"matcher.curvature": c, "matcher.steps": n} for c, n in (("zero", 1), ("exact", 1)))
    rows_ = [
        *runs("tesla", BETTER, options=zero),
        *runs("tesla", RANDOM, options=exact),
        *runs("tesla", BETTER, options=zero | {"matcher.steps": 9}, ipc=50),
        *runs("tesla", BETTER, options=zero, ipc=50, scheduler="pdd"),
        *runs("dm", BETTER, options=zero),
        *runs("dm", BETTER, options=exact, ipc=50),
    ]
    assert [(row["ipc"], row["matcher"], row["scheduler"], row["variant"]) for row in compared(rows_)] == [
        (1, "dm", "single", ""),
        (1, "tesla", "single", " (curvature=exact)"),
        (1, "tesla", "single", " (curvature=zero)"),
        (50, "dm", "single", ""),
        (50, "tesla", "pdd", " (curvature=zero)"),
        (50, "tesla", "single", " (curvature=zero)"),
    ]


def test_lines_can_be_averaged_over_other_things():
    rows_ = [row for ipc in (1, 10) for row in runs("tesla", [0.4 + ipc / 100, 0.6 + ipc / 100], ipc=ipc)]
    (row,) = compared(rows_, group_by=("method",))
    assert row["accuracies"] == pytest.approx([0.455, 0.655])
    assert (row["n"], row["ipc"], row["settings"]) == (2, None, 2)
    assert row["ci_low"] is not None
    assert "average over several settings" in captions(rows_, group_by=("matcher",))
    steps = [*runs("dm", RANDOM, options={"matcher.steps": 5}), *runs("dm", RANDOM, options={"matcher.steps": 9})]
    assert [row["matcher.steps"] for row in compared(steps, group_by=("matcher.steps",))] == [5, 9]


def test_averages_over_unequal_seeds_have_no_interval():
    """Seed 1 has only the easier setting: its mean is not another draw of what seed 0 gives."""
    rows_ = [*runs("tesla", [0.4, 0.4], ipc=1), *runs("tesla", [0.9, 0.9, 0.9], ipc=10)]
    (row,) = compared(rows_, group_by=("matcher",))
    assert row["ci_low"] is row["accuracy_std"] is None
    assert "do not all have the same seeds" in row["note"]


def test_what_diverged_is_shown_and_not_averaged():
    (row,) = compared(runs("tesla", [0.5, None, 0.7]))
    assert (row["status"], row["n"], row["seeds"]) == ("2 ok, 1 diverged", 2, [0, 2])
    assert row["accuracy_mean"] == pytest.approx(0.6)
    assert "over the runs that finished" in captions(runs("tesla", [0.5, None, 0.7]))
    (lost,) = compared(runs("tesla", [None, None]))
    assert (lost["status"], lost["accuracy_mean"], lost["n"]) == ("2 diverged", None, 0)


def test_a_run_that_diverged_joins_the_line_of_its_setting(tmp_path):
    """It has no evaluation, hence neither the network's full name nor the protocol's digest of evaluations."""
    for name, seed, result, scores in (("a", 0, DONE, [[0.5]]), ("b", 1, {"status": "diverged"}, [])):
        made = folder(tmp_path, name, result=(DONE | {"network": "convnet(width=8)"}) if scores else result)
        spec = json.loads((made / "spec.json").read_text())
        write_json(made / "spec.json", spec | {"seed": seed})
        for score in scores:
            write_json(made / "evaluations" / "0.json", evaluation(score, protocol_digest="as evaluations say"))
    (row,) = compared([row for name in "ab" for row in RunRecord.read(tmp_path / name).rows()])
    assert (row["status"], row["seeds"], row["network"]) == ("1 ok, 1 diverged", [0], "convnet(width=8)")


def test_an_evaluation_that_goes_on_counts_as_unfinished():
    (row,) = compared([line(status="evaluating")])
    assert (row["status"], row["accuracy_mean"]) == ("evaluating", None)


def test_costs_stand_beside_the_accuracy():
    rows_ = runs(
        "tesla",
        [0.5, 0.6],
        distil_seconds=3.0,
        expert_seconds=4.0,
        selection_seconds=5.0,
        peak_bytes=2**20,
        image_bytes=1500,
        label_bytes=400,
    )
    rows_[1] = replace(rows_[1], distil_seconds=5.0, peak_bytes=2**21)
    (row,) = compared(rows_)
    assert (row["distil_seconds"], row["expert_seconds"], row["selection_seconds"]) == (4.0, 4.0, 5.0)
    assert (row["peak_bytes"], row["total_bytes"], type(row["total_bytes"])) == (2**21, 1900, int)
    assert tables.cell("peak_bytes", row) == "2.0"
    assert tables.cell("total_bytes", row) == "1.9"


# ------------------------------------------------------------------------------------------ significance


def test_the_difference_to_random_is_tested_by_pairs_of_seeds():
    row = by_matcher(runs("random", RANDOM) + runs("tesla", BETTER))["tesla"]
    expected = stats.ttest_rel(BETTER, RANDOM)
    assert row["difference"] == pytest.approx(mean(BETTER) - mean(RANDOM))
    assert row["p"] == pytest.approx(float(expected.pvalue))
    assert (row["test"], row["baseline"]) == ("paired t, 5 seeds", "random")


def test_seeds_that_do_not_pair_are_tested_by_welch():
    later = [replace(row, seed=row.seed + 10) for row in runs("tesla", BETTER)]
    row = by_matcher(runs("random", RANDOM) + later)["tesla"]
    assert row["p"] == pytest.approx(float(stats.ttest_ind(BETTER, RANDOM, equal_var=False).pvalue))
    assert row["test"] == "Welch t, 5 and 5 seeds"


def test_of_seeds_that_pair_in_part_the_difference_is_over_the_pairs():
    row = by_matcher(runs("random", RANDOM) + runs("tesla", [*BETTER[:2], None, *BETTER[3:]]))["tesla"]
    pairs = [(b, r) for i, (b, r) in enumerate(zip(BETTER, RANDOM, strict=True)) if i != 2]
    assert row["p"] == pytest.approx(float(stats.ttest_rel(*map(list, zip(*pairs, strict=True))).pvalue))
    assert row["difference"] == pytest.approx(mean(b - r for b, r in pairs))
    assert row["test"] == "paired t, 4 of 5 seeds"


def test_p_values_are_corrected_over_all_tests_of_the_table():
    scores = {"a": BETTER, "b": [0.50, 0.52, 0.50, 0.52, 0.54], "c": [0.53, 0.50, 0.51, 0.50, 0.55]}
    rows_ = runs("random", RANDOM) + [row for name, values in scores.items() for row in runs(name, values)]
    raw = {name: float(stats.ttest_rel(values, RANDOM).pvalue) for name, values in scores.items()}
    for copies in (1, 2):  # the second time the same runs stand there as another group too
        pooled = sorted(list(raw.values()) * copies)
        steps = [(len(pooled) - i) * p for i, p in enumerate(pooled)]
        holm = [min(1.0, max(steps[: i + 1])) for i in range(len(steps))]
        table = compared([replace(row, ipc=10 * copy + 1) for copy in range(copies) for row in rows_])
        lines = [row for row in table if row["matcher"] in raw]
        assert len(lines) == 3 * copies
        for name, p in raw.items():
            mine = sorted(row["p_holm"] for row in lines if row["matcher"] == name)
            at = [holm[i] for i, other in enumerate(pooled) if other == p]
            assert mine == pytest.approx(at)  # equal p stay equal
            assert all(row["p"] == pytest.approx(p) for row in lines if row["matcher"] == name)


def test_differences_that_do_not_vary_have_no_p_and_a_note():
    row = by_matcher(runs("random", RANDOM) + runs("tesla", [r + 0.1 for r in RANDOM]))["tesla"]
    assert row["difference"] == pytest.approx(0.1)
    assert row["p"] is row["p_holm"] is None
    assert "do not vary" in row["note"]


def test_single_seeds_have_a_difference_and_no_p():
    row = by_matcher(runs("random", [0.5]) + runs("tesla", [0.6]))["tesla"]
    assert (row["difference"], row["p"], row["test"]) == (pytest.approx(0.1), None, "none")


def test_soft_labels_are_compared_with_random_images_with_soft_labels():
    soft = {"label_type": "teacher", "options": {"matcher.labels": "teacher", "decoder.factor": 1}}
    rows_ = [
        *runs("random", RANDOM),
        *runs("random", [r + 0.05 for r in RANDOM], **soft),
        *runs("tesla", BETTER, **soft),
        *runs("dm", BETTER),
    ]
    found = {(row["matcher"], row["label_type"]): row["baseline"] for row in compared(rows_)}
    assert found["tesla", "teacher"] == "random (teacher labels)"
    assert found["dm", "hard"] == "random"
    assert found["random", "teacher"] == found["random", "hard"] == "(itself)"
    chosen = by_matcher([row for row in rows_ if row.matcher != "dm"], baseline="matcher=random,label_type=hard")
    assert chosen["tesla"]["baseline"] == "random"


def test_random_images_in_stages_are_a_method_and_random_images_in_one_set_its_baseline():
    staged = runs("random", [r + 0.02 for r in RANDOM], scheduler="pdd")
    rows_ = [*runs("random", RANDOM), *staged, *runs("dm", BETTER)]
    found = {(row["matcher"], row["scheduler"]): row for row in compared(rows_)}
    assert found["dm", "single"]["baseline"] == found["random", "pdd"]["baseline"] == "random"
    assert found["random", "pdd"]["difference"] == pytest.approx(0.02)
    assert found["random", "single"]["baseline"] == "(itself)"
    chosen = {row["matcher"]: row for row in compared([*staged, *runs("dm", BETTER)])}
    assert chosen["dm"]["baseline"] == "random pdd"


def test_a_baseline_that_is_unclear_or_not_there_is_said():
    rows_ = [*runs("random", RANDOM, options={"matcher.x": 1}), *runs("random", BETTER, options={"matcher.x": 2})]
    rows_ += runs("tesla", BETTER)
    assert by_matcher(rows_)["tesla"]["difference"] is None
    advised = re.search(r"choose one, such as --baseline '(.*?)'", captions(rows_))
    assert advised is not None
    assert by_matcher(rows_, baseline=advised[1])["tesla"]["difference"] is not None
    with pytest.raises(UsageError, match=r"fits 2 lines of toy ipc 1 convnet .*x=1.*x=2.*random,matcher.x=1"):
        compared(rows_, baseline="random")
    with pytest.raises(UsageError, match="no line fits the baseline 'herding'; there are lines of random, tesla"):
        compared(rows_, baseline="herding")
    with pytest.raises(UsageError, match="no column 'matchr'; did you mean 'matcher'"):
        compared(rows_, baseline="matchr=random")
    assert by_matcher(runs("tesla", BETTER))["tesla"]["baseline"] is None


def test_of_two_random_lines_that_with_most_of_the_seeds_is_the_baseline():
    rows_ = [*runs("random", RANDOM[:2], options={"matcher.x": 1}), *runs("random", BETTER, options={"matcher.x": 2})]
    found = by_matcher([*rows_, *runs("tesla", BETTER)])["tesla"]
    assert (found["baseline"], found["difference"]) == ("random (x=2)", 0)


def test_a_line_says_which_code_changed_between_its_seeds():
    rows_ = runs("mine", BETTER)
    assert by_matcher(rows_)["mine"]["note"] is None
    mixed = [replace(row, sources={"mine": str(row.seed == 0), "ddbench": "same"}) for row in rows_]
    assert "were made by different code of mine; `ddbench run --fresh`" in by_matcher(mixed)["mine"]["note"]


def test_the_best_differs_significantly_from_every_other_line():
    rows_ = runs("random", RANDOM) + runs("tesla", BETTER) + runs("dm", [0.55, 0.56, 0.53, 0.57, 0.56])
    found = by_matcher(rows_)
    assert [name for name, row in found.items() if row["best"]] == ["tesla"]
    assert tables.cell("accuracy_mean", found["tesla"]).endswith("*")


def test_there_is_no_best_without_significance_and_the_caption_says_why():
    rows_ = runs("random", RANDOM) + runs("tesla", BETTER) + runs("dm", [0.61, 0.60, 0.59, 0.62, 0.61])
    assert not any(row["best"] for row in compared(rows_))
    assert "tesla does not differ significantly from dm" in captions(rows_)


def test_there_is_no_best_below_five_seeds():
    rows_ = runs("random", RANDOM[:4]) + runs("tesla", BETTER)
    assert not any(row["best"] for row in compared(rows_))
    assert "takes 5 finished seeds of every line, and random has fewer (the least 4)" in captions(rows_)


def test_the_best_is_corrected_for_all_pairs_because_it_was_chosen_by_looking():
    """Just significant against the runner-up alone, but not among the ten pairs of five lines."""
    second = [b - d for b, d in zip(BETTER, (0.02, 0.05, 0.01, 0.06, 0.03), strict=True)]
    assert stats.ttest_rel(BETTER, second).pvalue < 0.05
    two = runs("tesla", BETTER) + runs("dm", second)
    noise = {"a": RANDOM, "b": RANDOM[::-1], "c": [0.51, 0.50, 0.52, 0.49, 0.53]}
    many = [*two, *(row for name, scores in noise.items() for row in runs(name, scores))]
    assert [row["matcher"] for row in compared(two) if row["best"]] == ["tesla"]
    assert not any(row["best"] for row in compared(many))


# three lines of two to six seeds, with accuracies on a test set of 100 images, some of which did not finish
TABLES = st.lists(
    st.lists(st.one_of(st.none(), st.integers(0, 100).map(lambda n: n / 100)), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


@given(TABLES)
def test_any_table_is_valid_json_without_nan_and_its_best_is_the_best(scores):
    rows_ = [row for name, values in zip(("random", *"abc"), scores, strict=False) for row in runs(name, values)]
    table = compare.compared(rows_, Ask())[0]
    found = json.loads(render(table, "json"))
    for form in ("csv", "md", "latex", "html"):
        assert "nan" not in render(table, form).lower().replace("pp", "")
    best = [row for row in found if row["best"]]
    assert len(best) <= 1
    for row, other in ((b, o) for b in best for o in found if o is not b and o["n"]):
        assert row["accuracy_mean"] > other["accuracy_mean"]
        assert min(row["n"], other["n"]) >= 5
    assert sum(row["n"] for row in found) == sum(value is not None for values in scores for value in values)


# -------------------------------------------------------------------------------------------- protocols


MIXED = runs("random", RANDOM) + runs("tesla", BETTER, protocol="pdd-paper", protocol_digest="ccccccccdddd")


def test_protocols_are_not_mixed_within_a_comparison():
    with pytest.raises(UsageError) as refused:
        compared(MIXED)
    for part in ("toy, ipc 1", "default (aaaaaaaa)", "pdd-paper (cccccccc)", "--where protocol=", "--allow-mixed"):
        assert part in str(refused.value)


def test_rules_that_differ_under_one_name_are_different_protocols():
    with pytest.raises(UsageError, match=r"default \(aaaaaaaa\), default \(cccccccc\)"):
        compared([replace(row, protocol="default") for row in MIXED])


def test_protocols_may_differ_between_comparisons():
    rows_ = runs("random", RANDOM) + runs("random", RANDOM, protocol_digest="cc", ipc=10)
    assert len(compared(rows_)) == 2


def test_one_protocol_can_be_chosen():
    assert by_matcher(MIXED, where=("protocol=pdd-paper",)).keys() == {"tesla"}
    assert by_matcher(MIXED, where=("protocol_digest~aaaa",)).keys() == {"random"}


def test_nothing_is_tested_across_protocols_that_are_shown_together():
    found = compared(MIXED, allow_mixed=True)
    assert all(row["p"] is row["difference"] is None and not row["best"] for row in found)
    assert "Protocols are mixed" in captions(MIXED, allow_mixed=True)
    (row,) = compared([replace(row, matcher="m") for row in MIXED], allow_mixed=True, group_by=("matcher",))
    assert row["ci_low"] is row["accuracy_std"] is None


def test_a_selection_on_test_data_is_said_in_every_format():
    rows_ = runs("tesla", BETTER, selection="test")
    for table in (
        compare.compared(rows_, Ask())[0],
        compare.compared(rows_, Ask(per_run=True))[0],
        compare.compared(rows_, Ask(columns=("matcher", "accuracy")))[0],
    ):
        assert {row["selection"] for row in json.loads(render(table, "json"))} == {"test"}
        assert {row["selection"] for row in csv.DictReader(io.StringIO(render(table, "csv")))} == {"test"}
        for form, dagger in (("md", "†"), ("latex", r"$\dagger$"), ("html", "&#8224;")):
            text = render(table, form)
            assert text.count(dagger) >= 2
            assert "selected on test data" in text


# ------------------------------------------------------------------------- conditions, order, fail-if


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("matcher=tesla", [0, 1]),
        ("method=TESLA", [0, 1]),
        ("matcher!=tesla", [2]),
        ("ipc>=10", [1, 2]),
        ("ipc<10", [0]),
        ("ipc=1.0", [0]),
        ("matcher=tesla,ipc>1", [1]),
        ("network~width=3", [2]),
        ("network=convnet(width=32,depth=2)", [2]),
        ("network~convnet(", [2]),
        ("network~^convnet$", [0, 1]),
        ("matcher.steps>5", [2]),
        ("matcher.steps=none", [0, 1]),
        ("error=none", [0, 1, 2]),
        ("accuracy>0.55", [2]),
        ("matcher.steps!=9", [0, 1]),
        ("ipc<=10", [0, 1]),
    ],
)
def test_conditions_choose_rows(text, expected):
    rows_ = [
        line(ipc=1),
        line(ipc=10),
        line(
            matcher="dm", ipc=50, network="convnet(width=32,depth=2)", options={"matcher.steps": 9}, accuracy_mean=0.6
        ),
    ]
    assert [rows_.index(row) for row in select(rows_, [text])] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matchr=x", "no column 'matchr'; did you mean 'matcher'"),
        ("ipc>=ten", "needs a number after >=, got 'ten'"),
        ("tesla", "'tesla' is not a condition"),
        ("ipc<nan", "needs a number"),
        ("=3", "is not a condition"),
    ],
)
def test_conditions_that_cannot_hold_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        select([line()], [text])


def test_rows_are_sorted_with_what_is_missing_last():
    rows_ = [line(accuracy_mean=value, seed=i) for i, value in enumerate((0.2, None, 0.9, 0.2))]
    assert [row["seed"] for row in order([row.cells for row in rows_], "accuracy")] == [0, 3, 2, 1]
    assert [row["seed"] for row in order([row.cells for row in rows_], "-accuracy,-seed")] == [2, 3, 0, 1]
    with pytest.raises(UsageError, match="no column 'acuracy'; did you mean 'accuracy'"):
        order([row.cells for row in rows_], "acuracy")


def test_a_regression_fails_and_names_the_rows():
    found = compared(runs("random", RANDOM) + runs("tesla", BETTER))
    assert compare.tripped(found, ["accuracy<0.5"]) == []
    (said,) = compare.tripped(found, ["accuracy<0.6"])
    assert said == "accuracy<0.6: toy ipc 1 random single hard has accuracy_mean 0.51"
    assert len(compare.tripped(found, ["accuracy<0.6", "n<9"])) == 3


def test_what_has_no_value_has_not_passed():
    found = compared(runs("random", RANDOM) + runs("tesla", [None]))
    (said,) = compare.tripped(found, ["accuracy<0.1"])
    assert "tesla" in said
    assert "no value" in said
    assert len(compare.tripped(found, ["status!=ok"])) == 1
    assert compare.tripped([], ["accuracy<0.1"]) == ["accuracy<0.1: there is no row to check"]


@pytest.mark.parametrize("column", ["accuracy_mean", "steps", "student_lr", "total_bytes"])
def test_a_column_without_a_value_trips_whatever_it_is_called_but_a_status_is_only_what_it_is(column):
    missing = {"dataset": "toy", "ipc": 1, "matcher": "mtt", column: None, "status": None}
    (said,) = compare.tripped([missing], [f"{column}<0.5"])
    assert said == f"{column}<0.5: toy ipc 1 mtt has {column} no value"
    assert compare.tripped([missing], ["status=ok"]) == []


def test_the_baseline_is_not_asked_to_differ_from_itself():
    found = compared(runs("random", RANDOM) + runs("tesla", BETTER))
    assert compare.tripped(found, ["difference<0.05", "p_holm>0.01"]) == []


# --------------------------------------------------------------------------------------------- formats


FEW = [
    line(steps=1000, distil_seconds=1.5, peak_bytes=2**20, image_bytes=1500, label_bytes=10),
    line(matcher="all 5 images", ipc=None, seed=None, scheduler=None, steps=None),
    line(matcher="mtt", status="diverged", accuracy_mean=None, accuracy_std=None, n=0, error="it exploded, at 3"),
]


def single(rows_: list[Row] = FEW) -> Table:
    return Table(per_run(rows_), PER_RUN, title="runs")


def test_what_is_comparable_stands_together():
    found = per_run(
        [
            line(matcher="tesla", ipc=10),
            line(matcher="random", ipc=1),
            line(matcher="mtt", ipc=1, dataset="a"),
            line(matcher="random", ipc=10),
            line(matcher="all", ipc=None),
            line(matcher="tesla", ipc=1, seed=1),
            line(matcher="tesla", ipc=1, seed=0),
        ]
    )
    assert [(r["matcher"], r["seed"]) for r in found] == [
        ("mtt", 0),
        ("random", 0),
        ("tesla", 0),
        ("tesla", 1),
        ("random", 0),
        ("tesla", 0),
        ("all", 0),
    ]


def test_json_has_every_column_integers_and_nulls():
    found = json.loads(render(single(), "json"))
    by_name = {row["matcher"]: row for row in found}
    assert set(COLUMNS) <= set(found[0])
    assert type(by_name["tesla"]["steps"]) is type(by_name["tesla"]["ipc"]) is int
    assert by_name["all 5 images"]["ipc"] is None
    assert by_name["mtt"]["accuracy_mean"] is None
    assert (by_name["mtt"]["error"], by_name["tesla"]["distil_seconds"]) == ("it exploded, at 3", 1.5)


def test_csv_and_json_tell_the_same():
    table = compare.compared(runs("random", RANDOM) + runs("tesla", BETTER), Ask())[0]
    as_json = json.loads(render(table, "json"))
    as_csv = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    for one, other in zip(as_json, as_csv, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            text = json.dumps(value) if isinstance(value, (list, dict)) else "" if value is None else str(value)
            assert other[name] == text


def test_machines_read_fractions_and_people_percent():
    table = compare.compared(runs("random", RANDOM) + runs("tesla", BETTER), Ask())[0]
    assert max(row["accuracy_mean"] for row in json.loads(render(table, "json"))) < 1
    titles, body = table.text()
    cells = dict(zip(titles, body[1], strict=True))
    assert cells["accuracy %"] == "60.8 ± 1.9 *"
    assert cells["difference"] == "+9.8"
    titles, body = single().text()
    cells = dict(zip(titles, body[1], strict=True))
    assert (cells["accuracy %"], cells["peak MB"], cells["images kB"], cells["total kB"]) == (
        "50.0 ± 10.0",
        "1.0",
        "1.5",
        "1.5",
    )


def test_what_all_lines_share_is_said_once():
    table = compare.compared(runs("random", RANDOM) + runs("tesla", BETTER), Ask())[0]
    assert "dataset" not in table.text()[0]
    assert table.notes()[0] == "In all lines: dataset toy, network convnet, ipc 1, protocol default, students 2."
    assert "dataset" in compare.compared(runs("random", RANDOM), Ask())[0].text()[0]


def test_two_lines_that_agree_are_enough_to_say_it_once_and_one_is_not():
    same = [line(steps=1000), line(matcher="mtt", steps=1000)]
    for rows_, titles in ((same, False), (same[:1], True)):
        table = Table(per_run(rows_), {"matcher": "matcher", "steps": "N"}, once=("steps",))
        assert ("N" in table.text()[0]) is titles
        assert ("In all lines: N 1000." in table.notes()) is not titles


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("ci_low", {"ci_low": 0.1234, "ci_high": 0.9876}, "[12.3, 98.8]"),
        ("peak_bytes", {"peak_bytes": 5 * 2**20 + 2**19}, "5.5"),
        ("image_bytes", {"image_bytes": 12_345}, "12.3"),
        ("difference", {"difference": -0.0567}, "-5.7"),
        ("difference", {"difference": 0.05}, "+5.0"),
        ("p_holm", {"p_holm": 0.000999}, "<0.001"),
        ("p_holm", {"p_holm": 0.001}, "0.001"),
        ("accuracy_mean", {"accuracy_mean": 0.567, "accuracy_std": 0.0123, "best": True}, "56.7 ± 1.2 *"),
        ("accuracy_mean", {"accuracy_mean": 0.567, "selection": "test"}, "56.7 †"),
        ("distil_seconds", {"distil_seconds": 12.6}, "13"),
    ],
)
def test_a_cell_for_people_is_in_their_units(name, row, expected):
    assert tables.cell(name, row) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=f((1,2),3),b=4", ["a=f((1,2),3)", "b=4"]),
        ("a=[1,{2,3}],,b", ["a=[1,{2,3}]", "b"]),
        ("a),b,(c,d", ["a)", "b", "(c,d"]),
    ],
)
def test_conditions_are_divided_at_commas_outside_of_all_brackets(text, parts):
    assert divided(text) == parts


def test_columns_are_those_asked_for():
    table = compare.compared(runs("tesla", BETTER), Ask(columns=("matcher", "accuracy", "seeds")))[0]
    assert json.loads(render(table, "json")) == [
        {"matcher": "tesla", "accuracy_mean": pytest.approx(0.608), "seeds": [0, 1, 2, 3, 4]}
    ]
    assert table.text() == (["matcher", "accuracy %", "seeds"], [["tesla", "60.8 ± 1.9", "0, 1, 2, 3, 4"]])
    table = compare.compared(runs("random", RANDOM) + runs("tesla", BETTER), Ask(columns=("p", "p_holm")))[0]
    assert table.text()[0] == ["p (uncorrected)", "p (Holm)"]
    with pytest.raises(UsageError, match="no column 'acc'"):
        compare.compared(runs("tesla", BETTER), Ask(columns=("acc",)))


@pytest.mark.parametrize(
    ("form", "expected"), [("json", "[]"), ("csv", ""), ("md", None), ("latex", None), ("html", None)]
)
@pytest.mark.parametrize("per", [True, False])
def test_no_rows_are_valid_data_in_every_format(form, expected, per):
    text = render(compare.compared([], Ask(per_run=per, sort="accuracy", columns=("matcher",)))[0], form)
    assert expected is None or text == expected
    assert "nan" not in text.lower()


def test_an_unknown_format_is_refused_with_the_valid_ones():
    with pytest.raises(UsageError, match="valid ones: table, md, csv, json, latex, html"):
        render(single(), "xml")


HOSTILE = [
    "<script>alert(1)</script>",
    "[/x] [bold]b[/]",
    "\x1b[31mred\x07\u202e",
    "=cmd|' /C calc'!A0",
    "a|b\nc",
    "&lt;_*`",
    "$x$ \\input{y} %",
]


class Text(HTMLParser):
    """Tags and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.cells += [""] if tag in ("td", "th") else []

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_elsewhere_stay_text(name):
    table = compare.compared(runs(name, BETTER, error=name), Ask())[0]
    outputs = {form: render(table, form) for form in ("json", "csv", "md", "latex", "html")}
    for text in outputs.values():
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert json.loads(outputs["json"])[0]["matcher"] == name
    (row,) = csv.DictReader(io.StringIO(outputs["csv"]))
    assert not row["matcher"].startswith("=")
    page = Text()
    page.feed(outputs["html"])
    assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert tables.clean(name) in page.cells
    assert "<script" not in outputs["md"]
    _, rule, body, *_ = outputs["md"].splitlines()
    assert len(re.findall(r"(?<!\\)\|", body)) == rule.count("|")
    assert "\\input" not in outputs["latex"]


def test_numbers_below_zero_stay_numbers_in_csv():
    table = compare.compared(runs("random", BETTER) + runs("tesla", RANDOM), Ask())[0]
    found = {row["matcher"]: row for row in csv.DictReader(io.StringIO(render(table, "csv")))}
    assert float(found["tesla"]["difference"]) < 0


def test_html_is_an_accessible_table_in_ascii():
    text = render(compare.compared(runs("random", RANDOM) + runs("tesla", BETTER), Ask())[0], "html")
    assert text.isascii()
    assert "<caption>" in text
    assert text.count('<th scope="row">') == 2
    assert text.count('<th scope="col">') > 5
    assert "60.8 &#177; 1.9" in text


def test_names_from_elsewhere_cannot_write_to_the_terminal(capsys):
    from ddbench.cli import console

    console.table("runs", ["name"], [["\x1b[31mred\x1b]0;title\x07 [bold]plain[/]\u202etxt"]])
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "[bold]plain[/]" in shown


def test_rows_of_one_method_say_in_which_options_they_differ():
    rows_ = [line(seed=s, options={"matcher.c": c, "matcher.labels": "x"}) for s, c in ((0, "zero"), (1, "exact"))]
    assert [tables.cell("matcher", row) for row in per_run(rows_)] == ["tesla (c=exact)", "tesla (c=zero)"]
    assert tables.cell("matcher", per_run(rows_[:1])[0]) == "tesla"


# -------------------------------------------------------------------------------- reported, and commands


REAL = {
    "dataset": "cifar10",
    "data_source": "cifar10",
    "ipc": 10,
    "distil_network": "convnet",
    "distil_digest": "d" * 8,
    "label_type": "teacher",
}


def test_reported_values_stand_beside_and_are_neither_averaged_nor_tested():
    rows_ = runs("tesla", BETTER, **REAL) + runs("random", RANDOM, **REAL | {"label_type": "hard"})
    plain, (table,) = by_matcher(rows_), compare.compared(rows_, Ask(reported="same"))
    found = {row["matcher"]: row for row in table.rows}
    new = ("reported", "source")
    assert {n: {k: v for k, v in row.items() if k not in new} for n, row in found.items()} == plain
    assert [value["accuracy_mean"] for value in found["tesla"]["reported"]] == [0.664]
    assert len(found["random"]["reported"]) > 2
    cells = dict(zip(table.text()[0], table.text()[1][1], strict=True))
    assert cells["reported %"] == "66.4 ± 0.8"
    assert cells["source"].startswith("DATM Table 1 [")
    assert any("NUS-HPC-AI-Lab/DATM" in note and note.startswith("[") for note in table.notes())


def test_reported_values_of_other_settings_have_a_section_of_their_own():
    limited = runs("tesla", BETTER, **REAL, options={"dataset.limit": 500})
    assert compared(limited, reported="same")[0]["reported"] == []
    table, more = compare.compared(limited, Ask(reported="all"))
    assert table.rows[0]["reported"] == []
    assert {row["setting"] for row in more.rows} == {"other setting"}
    assert 0.664 in {row["accuracy_mean"] for row in more.rows}
    assert json.loads(render(table, "json"))[0]["reported_elsewhere"][0]["setting"] == "other setting"


def stored(out: Path) -> None:
    for seed in range(2):
        made = folder(out, f"run-{seed}", result=DONE, scores=[[0.5 + seed / 10, 0.6]])
        spec = json.loads((made / "spec.json").read_text())
        write_json(made / "spec.json", spec | {"seed": seed})


def test_the_command_shows_lines_or_runs_and_its_exit_code_is_a_gate(tmp_path):
    stored(tmp_path)
    (row,) = ddbench("compare", "--out", tmp_path, "--json").json
    assert (row["n"], row["seeds"]) == (2, [0, 1])
    assert len(ddbench("compare", "--out", tmp_path, "--per-run", "--json").json) == 2
    assert len(ddbench("compare", "--out", tmp_path, "--per-run", "--where", "seed=1", "--json").json) == 1
    passed = ddbench("compare", "--out", tmp_path, "--fail-if", "accuracy<0.5")
    failed = ddbench("compare", "--out", tmp_path, "--fail-if", "accuracy<0.9", "--format", "csv")
    assert (passed.code, failed.code) == (0, 1)
    assert "--fail-if accuracy<0.9: toy ipc 10 tesla pdd teacher has accuracy_mean 0.575" in failed.err
    assert failed.out.startswith("dataset,")
    assert ddbench("compare", "--out", tmp_path / "none", "--fail-if", "accuracy<0.9").code == 1


def test_the_command_refuses_mixed_protocols_with_code_2(tmp_path):
    stored(tmp_path)
    write_json(tmp_path / "run-0" / "evaluations" / "9.json", evaluation([0.5], protocol="pdd-paper"))
    answer = ddbench("compare", "--out", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "pdd-paper" in answer.err
    assert ddbench("compare", "--out", tmp_path, "--allow-mixed").code == 0
    assert len(ddbench("compare", "--out", tmp_path, "--per-run", "--json").json) == 3


def test_the_command_lists_what_is_published():
    found = ddbench("compare", "--reported-only", "--where", "dataset=cifar10,ipc=10,method=tesla", "--json").json
    assert {row["accuracy_mean"] for row in found} == {0.664, 0.489}
    assert all(row["source"] for row in found)
    text = ddbench("compare", "--reported-only", "--where", "dataset=CIFAR10", "--where", "ipc=10").out
    assert "66.4 ± 0.8" in text


def test_rows_tell_how_the_data_were_prepared_but_not_where_they_lie(tmp_path):
    """Two runs on one dataset, one of them whitened, must not look alike."""
    spec = {
        "dataset": {"name": "images", "options": {"root": "/home/someone/photos", "zca": True, "limit": 50}},
        "matcher": {"name": "random", "options": {}},
        "scheduler": {"name": "single", "options": {}},
        "network": {"name": "convnet"},
        "protocol": {"name": "default"},
        "ipc": 1,
        "seed": 0,
    }
    found = []
    for zca in (True, False):
        folder = tmp_path / str(zca)
        folder.mkdir()
        spec["dataset"]["options"]["zca"] = zca
        (folder / "spec.json").write_text(json.dumps(spec))
        found += RunRecord.read(folder).rows()
    assert found[0].options == {"dataset.zca": True, "dataset.limit": 50}
    shown = [tables.cell("matcher", row) for row in per_run(found)]
    assert sorted(shown) == ["random (dataset.zca=False)", "random (dataset.zca=True)"]


def test_a_folder_of_runs_becomes_a_tidy_data_frame(tmp_path):
    folder(tmp_path, "one", result=DONE, scores=[[0.25, 0.75]])
    folder(tmp_path, "two")
    found = compare.frame(tmp_path)
    assert found["run"].tolist() == ["one", "two"]
    assert found["accuracy_mean"].iloc[0] == 0.5
    assert found["accuracy_mean"].isna().tolist() == [False, True]
    assert str(found["ipc"].dtype) == str(found["steps"].dtype) == "Int64"
    assert found["n"].tolist() == [2, 0]
    assert compare.frame(tmp_path / "nothing").empty


@pytest.mark.parametrize("text", ["accuracy>90", "accuracy<50", "difference>2", "p_holm<5"])
def test_percent_where_fractions_are_meant_is_refused(text):
    rows_ = compared(runs("random", RANDOM) + runs("tesla", BETTER))
    with pytest.raises(UsageError, match="accuracies are fractions here; write"):
        compare.tripped(rows_, [text])


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UsageError, match="neither part of a name nor a regular expression"):
        select(runs("random", RANDOM), ["matcher~(["])
    assert len(select(runs("random", RANDOM, network="convnet(width=8)"), ["network~convnet("])) == 5


@pytest.mark.parametrize("form", ["ascii", "CSV", "csvs", "xml", ""])
def test_whatever_is_no_format_is_refused(form):
    with pytest.raises(UsageError, match="unknown format"):
        render(single(), form)


def test_conditions_in_brackets_in_brackets_are_not_divided():
    assert divided("a=f(g((1)),2),b=[{(0),1},2]") == ["a=f(g((1)),2)", "b=[{(0),1},2]"]


def test_a_row_without_a_baseline_has_not_passed():
    for baseline in (None, "", "random"):
        (said,) = compare.tripped([{"matcher": "mtt", "ipc": 1, "p": None, "baseline": baseline}], ["p<0.05"])
        assert "p no value" in said
    assert compare.tripped([{"matcher": "mtt", "ipc": 1, "p": None, "baseline": "(itself)"}], ["p<0.05"]) == []


def test_the_header_of_a_row_in_html_is_its_first_cell():
    text = render(Table([{"a": "one", "b": "two"}, {"a": "three", "b": "four"}], {"a": "A", "b": "B"}), "html")
    assert re.findall('<th scope="row">([^<]*)</th>', text) == ["one", "three"]
    assert re.findall("<td>([^<]*)</td>", text) == ["two", "four"]


def test_latex_has_the_titles_above_the_rows():
    text = render(Table([{"a": "one", "b": "two"}, {"a": "three", "b": "four"}], {"a": "A", "b": "B"}), "latex")
    assert [row for row in text.splitlines() if "&" in row] == [r"A & B \\", r"one & two \\", r"three & four \\"]
