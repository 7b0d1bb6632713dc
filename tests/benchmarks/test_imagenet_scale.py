"""The simulation of ImageNet at its true size, at a small one."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--images", "600", "--test", "60", "--classes", "10", "--ipc", "2", "--photos", "4", "--width", "4"),
    *(
        "--steps",
        "1",
        "--iterations",
        "1",
        "--student-steps",
        "1",
        "--batch-syn",
        "4",
        "--labelled",
        "8",
        "--graded",
        "20",
    ),
]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("imagenet_scale")


def test_a_photo_is_as_large_as_one_of_imagenet(script):
    data = script._jpeg(500, 375, 0)
    assert Image.open(io.BytesIO(data)).size == (500, 375)
    assert 60_000 < len(data) < 200_000
    assert data == script._jpeg(500, 375, 0) != script._jpeg(500, 375, 1)


def test_a_row_says_seconds_hours_memory_and_disk(script):
    row = script.Row("labels", "8 images", 7200.0, 1800.0, None, 1.234, None, 0.2)
    assert row.cells() == ["labels", "8 images", "7,200", "2.0", "0.5", "", "1.23", "", "0.2"]
    assert len(row.cells()) == len(script.HEAD)
    assert script._table(("a", "b", "c"), [["x", "y", "1"]]) == [
        "| a | b | c |",
        "| --- | --- | ---: |",
        "| x | y | 1 |",
    ]


def test_what_gpu_hours_rest_on_is_on_record(script):
    found = json.loads(script.ON_RECORD.read_text())["figures"]
    known = {(f["part"], f["variant"]): f.get("value") for f in found}
    assert known["training", "ddbench, DSA"] > 0
    assert known["unrolls", "zero compiled"] > 0


@pytest.mark.slow
def test_a_small_simulation_prints_a_row_for_each_phase_and_leaves_nothing(tmp_path):
    place = tmp_path / "place"
    command = [sys.executable, str(ROOT / "benchmarks" / "imagenet_scale.py"), str(place), *SMALL]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]), "DDBENCH_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path, check=False)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    phases = [line.split(" | ")[0].removeprefix("| ") for line in table[2:]]
    assert phases == [
        *("listing, first", "listing, again", "preparing", "loading", "experts", "distillation", "labels"),
        *("selection", "grading"),
    ]
    assert "times the image tensor" in done.stdout.splitlines()[-1]
    assert not place.exists()
