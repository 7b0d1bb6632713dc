"""The records of two questions: completed row by row, and made of finished runs of a suite alone."""

from __future__ import annotations

import gzip
import json

import pytest
from tiny import run

from benchmarks import questions as bench
from ddbench.suite.grid import read

SUITE = """
students = 1
threads = 1
[options]
"dataset.per_class" = 20
"network.width" = 8
"protocol.steps" = 12
"protocol.judges" = 1
"protocol.lrs" = 0.03
"protocol.ceiling_epochs" = 1
"experts.batch" = 9
[[matrix]]
dataset = "toy"
matcher = ["random", { name = "dm", options = { steps = 2 } }]
ipc = [1, 2]
"""


def test_a_record_is_completed_in_place(tmp_path):
    path = tmp_path / "r.json.gz"
    bench.store(path, [{"run": "a", "n": 1}, {"run": "b", "n": 1}])
    bench.store(path, [{"run": "b", "n": 2, "options": {"left": "to the suite"}}, {"run": "c", "n": 1, "seed": None}])
    held = json.loads(gzip.decompress(path.read_bytes()))
    assert held == [{"run": "a", "n": 1}, {"run": "b", "n": 2}, {"run": "c", "n": 1}]


def test_a_stage_is_flat_where_its_last_tenth_is_as_the_tenth_before(tmp_path):
    log = tmp_path / "metrics.jsonl"
    seen = [{"stage": 0, "step": i, "loss": 20.0 - i} for i in range(20)] + [{"stage": 1, "note": "no loss"}]
    seen += [{"stage": 1, "step": i, "loss": 0.5} for i in range(3)]  # fewer than ten: the mean is of one
    log.write_text("".join(json.dumps(line) + "\n" for line in seen))
    first, second = bench.stages(log)
    assert first == {"first": 19.5, "last": 1.5, "change": pytest.approx(1.5 / 3.5 - 1)}
    assert second == {"first": 0.5, "last": 0.5, "change": 0.0}


@pytest.mark.slow
def test_finished_runs_get_their_controls_and_random_images_none(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    (tmp_path / "s.toml").write_text(SUITE)
    suite, out = read(tmp_path / "s.toml", device="cpu"), tmp_path / "runs"
    assert len(suite.cells) == 4
    for cell in suite.cells:
        if cell.spec.ipc == 1:
            run(out, cell.spec, students=1)
    runs = bench.folders(suite, out)
    assert len(runs) == 2
    (row,) = bench.with_controls(suite, runs, out)
    assert row["matcher"] == "dm"
    assert row["selected_accuracy"] is not None
    assert {(c["images"], c["labels"]) for c in row["controls"]} == {
        (images, labels) for images in ("distilled", "random", "matched") for labels in ("hard", "soft", "online")
    }
    assert len(bench.folders(suite, out)) == 2  # what controls make is no cell of its own
