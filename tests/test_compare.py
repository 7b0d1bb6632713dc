"""Rows from run folders, and the tables made of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import pytest

from ddbench import compare
from ddbench.cache import write_json
from ddbench.errors import DataError, UsageError
from ddbench.results import COLUMNS, find_run, ordered, rows, run_folders


def folder(out: Path, name: str, *, result: dict[str, Any] | None = None, scores: list[list[float]] = ()) -> Path:
    """A run folder with what the tables read: the spec, the result, and evaluations with these accuracies."""
    spec = {
        "dataset": {"name": "toy", "options": {}}, "matcher": {"name": "tesla", "options": {"labels": "teacher"}},
        "scheduler": {"name": "pdd", "options": {}}, "network": {"name": "convnet", "options": {}},
        "ipc": 10, "seed": 3, "protocol": {"name": "default"},
    }  # fmt: skip
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
    "status": "ok", "selection": "validation", "steps": 1000, "label_type": "teacher", "distil_seconds": 12.4,
    "selection_seconds": 1.0, "expert_seconds": 33.6, "peak_bytes": 5 * 2**20, "image_bytes": 2000, "label_bytes": 400,
    "machine": {"device": "a CPU"},
}  # fmt: skip


def line(**more: Any) -> dict[str, Any]:
    base = {"dataset": "toy", "matcher": "tesla", "scheduler": "single", "network": "convnet", "ipc": 1, "seed": 0,
            "protocol": "default", "label_type": "hard", "status": "ok", "n": 2, "accuracy_mean": 0.5,
            "accuracy_std": 0.1}  # fmt: skip
    return ordered(base | more)


def test_the_row_of_a_run_has_the_mean_and_the_deviation_over_students(tmp_path):
    scores = [0.5, 0.6, 0.9]
    (row,) = rows(folder(tmp_path, "a", result=DONE, scores=[scores]))
    assert row["accuracy_mean"] == pytest.approx(mean(scores))
    assert row["accuracy_std"] == pytest.approx(pstdev(scores))
    assert row["ece_mean"] == pytest.approx(mean(scores) / 10)
    assert row["n"] == 3
    assert (row["status"], row["selection"], row["steps"], row["seed"], row["ipc"]) == ("ok", "validation", 1000, 3, 10)
    assert (row["distil_seconds"], row["expert_seconds"], row["peak_bytes"]) == (12.4, 33.6, 5 * 2**20)
    assert (row["image_bytes"], row["label_bytes"], row["label_type"]) == (2000, 400, "teacher")
    assert (row["network"], row["device"], row["run"]) == ("convnet(width=8)", "a CPU", "a")
    assert list(row)[: len(COLUMNS)] == list(COLUMNS)


def test_every_evaluation_of_a_run_is_a_row(tmp_path):
    found = rows(folder(tmp_path, "a", result=DONE, scores=[[0.1], [0.2, 0.4]]))
    assert sorted(row["n"] for row in found) == [1, 2]


def test_a_run_without_a_result_is_a_row_that_says_so(tmp_path):
    (row,) = rows(folder(tmp_path, "a"))
    assert (row["status"], row["n"], row["accuracy_mean"]) == ("incomplete", 0, None)
    (row,) = rows(folder(tmp_path, "b", result={"status": "diverged", "error": "the loss exploded"}))
    assert (row["status"], row["n"], row["error"]) == ("diverged", 0, "the loss exploded")


def test_an_evaluation_that_goes_on_is_not_shown_as_done(tmp_path):
    made = folder(tmp_path, "a", result=DONE)
    write_json(made / "evaluations" / "1.json", evaluation([0.5], complete=False) | {"n": 5})
    (row,) = rows(made)
    assert row["n"] == 1
    assert row["status"] != "ok"


def test_an_unreadable_result_names_the_file(tmp_path):
    made = folder(tmp_path, "a", result=DONE)
    (made / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"a/result\.json"):
        rows(made)


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


def test_what_is_comparable_stands_together():
    table = compare.frame([
        line(matcher="tesla", ipc=10), line(matcher="random", ipc=1), line(matcher="mtt", ipc=1, dataset="a"),
        line(matcher="random", ipc=10), line(matcher="all", ipc=None), line(matcher="tesla", ipc=1, seed=1),
        line(matcher="tesla", ipc=1, seed=0),
    ])  # fmt: skip
    assert [(r["matcher"], r["seed"]) for r in table.to_dict("records")] == [
        ("mtt", 0), ("random", 0), ("tesla", 0), ("tesla", 1), ("random", 0), ("tesla", 0), ("all", 0),
    ]  # fmt: skip


MIXED = [line(steps=1000, distil_seconds=1.5, peak_bytes=2**20, image_bytes=1500), line(matcher="all 5 images",
         ipc=None, seed=None, scheduler=None, steps=None), line(matcher="mtt", status="diverged",
         accuracy_mean=None, accuracy_std=None, n=0, error="it exploded, at 3")]  # fmt: skip


def test_json_has_every_column_integers_and_nulls():
    found = json.loads(compare.render(compare.frame(MIXED), "json"))
    by_name = {row["matcher"]: row for row in found}
    assert set(COLUMNS) <= set(found[0])
    assert by_name["tesla"]["steps"] == 1000
    assert type(by_name["tesla"]["steps"]) is int
    assert type(by_name["tesla"]["ipc"]) is int
    assert by_name["all 5 images"]["ipc"] is None
    assert by_name["mtt"]["accuracy_mean"] is None
    assert by_name["mtt"]["error"] == "it exploded, at 3"
    assert by_name["tesla"]["distil_seconds"] == 1.5


def test_csv_has_every_column_and_its_integers_are_integers():
    found = list(csv.DictReader(io.StringIO(compare.render(compare.frame(MIXED), "csv"))))
    by_name = {row["matcher"]: row for row in found}
    assert set(COLUMNS) <= set(found[0])
    assert by_name["mtt"]["error"] == "it exploded, at 3"
    assert by_name["mtt"]["accuracy_mean"] == ""
    assert by_name["all 5 images"]["ipc"] == ""
    assert float(by_name["tesla"]["accuracy_mean"]) == 0.5
    assert (by_name["tesla"]["ipc"], by_name["tesla"]["seed"], by_name["tesla"]["steps"]) == ("1", "0", "1000")


def test_csv_and_json_tell_the_same():
    table = compare.frame(MIXED)
    as_json = json.loads(compare.render(table, "json"))
    as_csv = list(csv.DictReader(io.StringIO(compare.render(table, "csv"))))
    for one, other in zip(as_json, as_csv, strict=True):
        assert {k: "" if v is None else str(v) for k, v in one.items()} == other


def test_markdown_is_a_table_with_the_deviation_and_escaped_bars():
    text = compare.render(compare.frame([line(matcher="a|b")]), "md")
    head, rule, body = text.splitlines()
    assert head.startswith("| dataset | matcher |")
    assert set(rule) == {"|", "-", " "}
    assert r"a\|b" in body
    assert "50.0 ± 10.0" in body
    assert text.endswith("|\n")


def test_latex_is_a_booktabs_table_with_escaped_names():
    text = compare.render(compare.frame([line(matcher="a_b&c%")]), "latex")
    assert text.startswith(r"\begin{tabular}")
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"a\_b\&c\%" in text
    assert r"50.0 $\pm$ 10.0" in text
    columns = {row.count("&") - row.count(r"\&") for row in text.splitlines() if row.endswith(r"\\")}
    assert len(columns) == 1
    assert f"{{{'l' * (columns.pop() + 1)}}}" in text


def test_people_see_percent_megabytes_and_kilobytes():
    text = compare.shown(compare.frame(MIXED))
    row = text[text["matcher"] == "tesla"].iloc[0]
    assert row["accuracy %"] == "50.0 ± 10.0"
    assert row["peak MB"] == "1.0"
    assert row["images kB"] == "1.5"
    assert row["ipc"] == "1"
    assert row["N"] == "1000"
    missing = text[text["matcher"] == "mtt"].iloc[0]
    assert missing["accuracy %"] == ""
    assert missing["status"] == "diverged"
    assert not text.isna().any().any()


@pytest.mark.parametrize(("form", "expected"), [("json", "[]"), ("csv", None), ("md", None), ("latex", None)])
def test_no_rows_are_valid_data_in_every_format(form, expected):
    text = compare.render(compare.frame([]), form)
    if expected is not None:
        assert text == expected
    assert "nan" not in text.lower()


def test_an_unknown_format_is_refused_with_the_valid_ones():
    with pytest.raises(UsageError, match="valid ones: table, md, csv, json, latex"):
        compare.render(compare.frame([line()]), "xml")


def test_names_from_elsewhere_cannot_write_to_the_terminal(capsys):
    from ddbench import console

    console.table("runs", ["name"], [["\x1b[31mred\x1b]0;title\x07 [bold]plain[/]\u202etxt"]])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "[bold]plain[/]" in shown


def test_rows_of_one_method_say_in_which_options_they_differ():
    base = {"dataset": "d", "matcher": "tesla", "scheduler": "single", "network": "n", "ipc": 1, "protocol": "default",
            "label_type": "hard", "accuracy_mean": 0.5, "accuracy_std": 0.1, "n": 5, "status": "ok"}  # fmt: skip
    rows = [
        ordered(
            base | {"seed": seed, "options": {"matcher.curvature": curvature, "matcher.labels": "hard", "matcher.T": 3}}
        )
        for seed, curvature in ((0, "zero"), (1, "exact"))
    ]
    assert list(compare.shown(compare.frame(rows))["matcher"]) == ["tesla (curvature=zero)", "tesla (curvature=exact)"]
    assert list(compare.shown(compare.frame(rows[:1]))["matcher"]) == ["tesla"]


def test_rows_tell_how_the_data_were_prepared_but_not_where_they_lie(tmp_path):
    """Two runs on one dataset, one of them whitened, must not look alike."""
    spec = {
        "dataset": {"name": "images", "options": {"root": "/home/someone/photos", "zca": True, "limit": 50}},
        "matcher": {"name": "random", "options": {}}, "scheduler": {"name": "single", "options": {}},
        "network": {"name": "convnet"}, "protocol": {"name": "default"}, "ipc": 1, "seed": 0,
    }  # fmt: skip
    found = []
    for zca in (True, False):
        folder = tmp_path / str(zca)
        folder.mkdir()
        spec["dataset"]["options"]["zca"] = zca
        (folder / "spec.json").write_text(json.dumps(spec))
        found += rows(folder)
    assert found[0]["options"] == {"dataset.zca": True, "dataset.limit": 50}
    shown = compare.shown(compare.frame(found))
    assert sorted(shown["matcher"]) == ["random (dataset.zca=False)", "random (dataset.zca=True)"]
