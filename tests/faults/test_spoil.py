"""Files are spoilt in drawn ways, the same for the same draws, and never outside of their folder."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

from ddbench.base.tensors import save_tensors
from ddbench.testing.faults import spoil as ways
from ddbench.testing.faults.flips import flip, struck
from ddbench.testing.faults.spoil import VICTIM, mutated, spoil


def sound(folder: Path) -> dict[str, Path]:
    """One file of each kind that has ways of its own."""
    (folder / "runs").mkdir(parents=True)
    (folder / VICTIM).write_text("precious")
    files = {name: folder / "runs" / f"a.{name}" for name in ("json", "jsonl", "toml", "safetensors", "zip")}
    files["json"].write_text(json.dumps({"seed": 0, "options": {"lr": [0.1, 0.2]}}))
    files["jsonl"].write_text('{"step": 0}\n{"step": 1}\n')
    files["toml"].write_text('title = "x"\n[a]\nb = 1\n')
    files["zip"].write_bytes(bytes(100))
    save_tensors(files["safetensors"], {"t": torch.zeros(3)}, {"notes": '{"step": 3}'}, sealed=True)
    return files


@pytest.mark.parametrize("kind", ["json", "jsonl", "toml", "safetensors", "zip"])
def test_a_spoilt_file_is_not_what_it_was_and_its_neighbours_are(tmp_path, kind):
    for seed in range(40):
        folder = tmp_path / str(seed)
        path = sound(folder)[kind]
        before = path.read_bytes()
        said = spoil(path, random.Random(seed))
        assert said
        same = path.is_file() and not path.is_symlink() and path.stat().st_size < 1e6 and path.read_bytes() == before
        assert not same or said in ("other bytes", "nodes of json"), said  # the drawn bytes may be the old ones
        assert (folder / VICTIM).read_text() == "precious"
        assert len(list((folder / "runs").iterdir())) == 5


def test_equal_draws_spoil_alike(tmp_path):
    texts = []
    for name in ("a", "b"):
        path = sound(tmp_path / name)["json"]
        ways._nodes_of_json(path, random.Random(3))
        texts.append(path.read_text())
    assert texts[0] == texts[1]


def test_mutations_change_something_at_any_depth():
    found = set()
    for seed in range(300):
        value = {"a": {"b": [1, {"c": 2}]}, "d": "text"}
        found.add(json.dumps(mutated(value, random.Random(seed)))[:100])
    assert len(found) > 60
    assert any('"c": null' in text for text in found)


def test_many_mutations_stay_small_and_share_nothing():
    for seed in range(200):
        made = mutated({"a": [1, [2, {"b": 3}]], "c": {}}, random.Random(seed), times=8)
        assert len(json.dumps(made)) < 3_000_000
    texts = [json.dumps(mutated({"a": [1, [2]]}, random.Random(7), times=8)) for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("bit", [0, 7, 8, 799])
def test_a_flip_changes_exactly_one_bit(tmp_path, bit):
    path = tmp_path / "x"
    before = os.urandom(100)
    path.write_bytes(before)
    flip(path, bit)
    after = path.read_bytes()
    changed = [i for i in range(800) if (after[i // 8] ^ before[i // 8]) >> i % 8 & 1]
    assert changed == [bit]


def test_files_are_struck_by_kind_whatever_they_are_called(tmp_path):
    for name in (
        "home/experts/09875f25b17c363351e2/000001.safetensors",
        "home/experts/09875f25b17c363351e2/000001.lock",
        "runs/toy-dm-single-ipc1-seed0-2710b8df77b0/stage-0/checkpoint.safetensors",
        "runs/toy-dm-single-ipc1-seed0-2710b8df77b0/stage-1/checkpoint.safetensors",
        "runs/toy-dm-single-ipc1-seed0-2710b8df77b0/.spec.json.x.tmp",
        "photos.zip",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = {what: len(paths) for what, paths in struck(tmp_path).items()}
    assert found == {"home/experts/N/N.safetensors": 1, "runs/RUN/stage-N/checkpoint.safetensors": 2}
