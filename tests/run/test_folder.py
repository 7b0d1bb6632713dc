"""Folders of runs: one that cannot be read is a row with its reason, and versions of ddbench share their settings."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import ddbench

from ddbench.base.cache import write_json
from ddbench.base.options import options
from ddbench.errors import DataError
from ddbench.plugins import registry
from ddbench.results.aggregate import aggregate
from ddbench.run.folder import find_run, readable, rows, run_folders
from ddbench.run.record import RunRecord

SPEC: dict[str, Any] = {
    "dataset": {"name": "toy", "options": {}},
    "matcher": {"name": "tesla", "options": {"steps": 3}},
    "scheduler": {"name": "single", "options": {}},
    "network": {"name": "convnet", "options": {}},
    "protocol": {"name": "default"},
    "protocol_digest": "p",
    "ipc": 1,
    "seed": 0,
}


def stored(folder: Path, accuracy: float = 0.5, **spec: Any) -> Path:
    """A finished run with one student."""
    write_json(folder / "spec.json", SPEC | spec)
    data = {"name": "toy", "digest": "d"}
    write_json(
        folder / "result.json", {"status": "ok", "dataset": data, "network": "convnet", "selection": "validation"}
    )
    graded = {"complete": True, "n": 1, "network": "convnet", "protocol": "default", "protocol_digest": "p"}
    graded |= {"dataset": "toy", "dataset_digest": "d", "students": [{"accuracy": accuracy, "ece": 0.1}]}
    write_json(folder / "evaluations" / "0.json", graded)
    return folder


DAMAGE = {
    "spec.json": [b"{", b"[" * 100_000, b"\xff\xfe{}", b"null", b'{"a":' * 990 + b"1" + b"}" * 990],
    "result.json": [
        b'{"status": "ok", "distil_seconds": 1e999}',
        b'{"status": "../x"}',
        b'{"sha256": {"../../x": "1"}}',
    ],
    "evaluations/0.json": [b'{"students": [{"accuracy": 0.5, "ece": NaN}]}', b'{"students": [{"accuracy": 2}]}'],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, every in DAMAGE.items() for data in every])
def test_one_bad_folder_is_a_row_with_its_reason_and_blocks_no_other(tmp_path, name, data):
    stored(tmp_path / "sound")
    (stored(tmp_path / "bad") / name).write_bytes(data)
    found = {row.run: row for row in rows(readable(run_folders(tmp_path)))}
    assert found["sound"].accuracy_mean == 0.5
    assert found["bad"].status == "damaged"
    assert name.rpartition("/")[2] in (found["bad"].error or "")
    for more in ((), ("--per-run",)):
        answer = ddbench("compare", "--out", tmp_path, "--json", *more)
        assert answer.code == 0
        assert {row["status"] for row in answer.json} == {"ok", "damaged"}
        assert any(name.rpartition("/")[2] in (row.get("note") or "") for row in answer.json)
        table = ddbench("compare", "--out", tmp_path, "--format", "md", *more)
        assert "damaged" in table.out
        assert "bad" in table.out
    listed = ddbench("list", "runs", "--out", tmp_path, "--json").json
    assert {row["run"]: row["error"] is None for row in listed} == {"sound": True, "bad": False}


def test_bad_folders_are_a_row_each(tmp_path):
    for name in ("a", "b"):
        (stored(tmp_path / name) / "spec.json").write_text("{")
    found = aggregate(rows(readable(run_folders(tmp_path))))
    assert [line.row.run for line in found] == ["a", "b"]
    assert len(list(csv.DictReader(io.StringIO(ddbench("compare", "--out", tmp_path, "--format", "csv").out)))) == 2


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(tmp_path):
    folder = stored(tmp_path / "pipe")
    (folder / "result.json").unlink()
    os.mkfifo(folder / "result.json")
    (row,) = rows(readable([folder]))
    assert "is a named pipe, not a regular file" in (row.error or "")


def test_a_folder_whose_name_is_no_text_has_one_that_can_be_printed(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    stored(folder)
    assert [row.run for row in rows(readable([folder]))] == ["run-?"]
    assert ddbench("compare", "--out", tmp_path, "--json").code == 0


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b", "../" * 2000])
def test_a_name_that_no_file_can_have_names_no_run(tmp_path, name):
    with pytest.raises(DataError, match="no run"):
        find_run(name, tmp_path)


def old(seed: int, **more: Any) -> dict[str, Any]:
    """What 0.1 recorded: options that trajectory matchers have no longer, at what were their defaults."""
    options = SPEC["matcher"]["options"] | {"segments": 1, "stacked": None} | more
    return {"seed": seed, "matcher": {"name": "tesla", "options": options}}


def test_runs_before_and_after_an_option_was_removed_are_one_setting(tmp_path):
    before, after = stored(tmp_path / "before", **old(0)), stored(tmp_path / "after", 0.7, seed=1)
    (line,) = aggregate(rows(readable([before, after])))
    assert line.scores == {0: 0.5, 1: 0.7}
    assert "segments" not in line.variant


def test_an_option_that_was_removed_at_another_value_stays_apart(tmp_path):
    before, after = stored(tmp_path / "before", **old(0, segments=4)), stored(tmp_path / "after", seed=1)
    assert len(aggregate(rows(readable([before, after])))) == 2


def test_runs_before_and_after_an_option_was_added_are_one_setting_at_its_default(tmp_path):
    """Keys hold what differs from defaults, so that an option which is added renames no run; settings do the same."""
    usual = options(registry().get("matcher", "tesla").cls())
    first = {name: value for name, value in usual.items() if name != "schedule"}
    for seed, held in enumerate((first, usual, usual | {"schedule": "cosine"})):
        stored(tmp_path / str(seed), seed=seed, matcher={"name": "tesla", "options": held})
    lines = aggregate(rows(readable(run_folders(tmp_path))))
    assert sorted(list(line.scores) for line in lines) == [[0, 1], [2]]


def test_a_run_of_a_plugin_that_is_not_here_is_read_as_it_is(tmp_path):
    for seed, held in enumerate(({"a": 1}, {"b": 2})):
        stored(tmp_path / str(seed), seed=seed, matcher={"name": "elsewhere", "options": held})
    assert len(aggregate(rows(readable(run_folders(tmp_path))))) == 2


@pytest.mark.parametrize("name", ["../x", "/x", "a b", "", "-o", ".x", "x" * 129])
def test_a_name_that_could_be_a_path_is_damage(tmp_path, name):
    folder = stored(tmp_path / "a", matcher={"name": name, "options": {}})
    with pytest.raises(DataError, match=r"spec.json is damaged \(matcher.name: "):
        RunRecord.read(folder)
