"""What is selected, on which data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from tiny import run, spec

from ddbench.base.cache import read_json
from ddbench.grade.distilled import Distilled
from ddbench.run.record import RunRecord
from ddbench.run.row import Row
from ddbench.run.run import Run, Settings


def made(tmp_path: Path, **rules) -> tuple[Row, Path]:
    base = spec("random", "single", 1)
    folder = run(tmp_path, replace(base, protocol=replace(base.protocol, **rules)), students=1)
    return RunRecord.read(folder).rows()[0], folder


@pytest.mark.parametrize("selects", ["validation", "test"])
def test_a_run_is_judged_on_the_data_that_its_protocol_names_and_says_so(tmp_path, selects):
    base = spec("random", "single", 1)
    rules = replace(base.protocol, selects=selects)
    work = Run(replace(base, protocol=rules), base.dataset.load(), Settings(tmp_path))
    part = getattr(work.dataset, selects)
    seen = []

    def noted(_network, _vector, data) -> float:
        seen.append(data.digest)
        return 0.5

    work.folder.mkdir(parents=True)
    with patch("ddbench.grade.selection.accuracy", noted):
        work.distil()
    assert set(seen) == {part.digest}
    row, folder = made(tmp_path / "whole", selects=selects)
    assert row.selection == selects
    assert Distilled.load(folder / "distilled.safetensors").about["selection"] == selects
    assert read_json(folder / "result.json")["selection"] == selects


def test_where_nothing_is_selected_no_judge_trains_and_the_last_checkpoint_is_kept(tmp_path):
    with patch("ddbench.run.stage.judge", side_effect=AssertionError("a judge was trained")):
        row, folder = made(tmp_path, selects="last", lrs=(), checks=1, lr=0.02)
    assert row.selection == "last"
    (found,) = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    assert found.lr == 0.02
    notes = read_json(folder / "stage-0" / "result.json")
    assert [check["accuracy"] for check in notes["checks"]] == [None]
