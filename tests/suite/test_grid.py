"""Suite files of others: what they may say, and what they may not take from the environment."""

from __future__ import annotations

import re
from dataclasses import replace

import pictures
import pytest
import torch
from tiny import ddbench

from ddbench.errors import UsageError
from ddbench.run.spec import resolve, usual_threads
from ddbench.suite.grid import read

CELL = 'matcher = "random"\nipc = 1\n'


@pytest.mark.parametrize(
    "line",
    [
        'dataset = "hf:attacker/${MY_TOKEN}"',
        'dataset = { name = "hf", options = { path = "attacker/${MY_TOKEN}" } }',
        'dataset = "toy${MY_TOKEN}"',
        'dataset = "toy"\nnetwork = { name = "convnet", options = { norm = "${MY_TOKEN}" } }',
        'dataset = "toy"\noptions = { "dataset.path" = "${MY_TOKEN}" }',
    ],
)
def test_a_variable_of_the_environment_leaves_this_machine_in_no_name(tmp_path, monkeypatch, line):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t")
    path = tmp_path / "s.toml"
    path.write_text(f"[[matrix]]\n{CELL}{line}\n")
    for more in (("--dry-run",), ()):
        answer = ddbench("suite", "run", path, "--out", tmp_path / "runs", *more)
        assert (answer.code, answer.out) == (2, "")
        assert "s3cr3t" not in answer.err


def test_a_plan_needs_no_variable_and_shows_what_none_holds(tmp_path, monkeypatch):
    path = tmp_path / "s.toml"
    path.write_text(
        f"[[matrix]]\n{CELL}dataset = {{ name = 'images', options = {{ root = '${{PICTURES}}/a.zip' }} }}\n"
    )
    for value in (None, "s3cr3t"):
        monkeypatch.setenv("PICTURES", value) if value else monkeypatch.delenv("PICTURES", raising=False)
        answer = ddbench("suite", "run", path, "--out", tmp_path / "runs", "--dry-run")
        assert answer.code == 0
        assert "${PICTURES}" in answer.err + answer.out
        assert "s3cr3t" not in answer.err + answer.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "nested more than 64 levels deep"),
        ("title = '" + "x" * 200_000 + "'", "a text of 200,000 letters"),
        ("title = 3\n[[matrix]]\ndataset = 'toy'\nmatcher = 'random'\nipc = 1", "title of .* must be a text"),
        ("[[matrix]]\ndataset = 'toy'\nmatcher = 'random'\nipc = 99999999999", "ipc of .* from 1 to"),
        (
            f"seeds = {[*range(1000)]}\n[[matrix]]\ndataset = 'toy'\nmatcher = 'random'\nipc = {[*range(1, 200)]}",
            "cells",
        ),
        (
            "[[matrix]]\ndataset = {name = 'images', options = {root = '~nobody-here/x'}}\nmatcher = 'dm'\nipc = 1",
            "home directory",
        ),
        ("[[matrix]]\ndataset = 'images:" + "x" * 5000 + "'\nmatcher = 'dm'\nipc = 1\nprotocol = 'x'", "protocol"),
    ],
)
def test_a_suite_beyond_all_bounds_is_refused_in_a_sentence(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(text)
    answer = ddbench("suite", "run", tmp_path / "s.toml", "--dry-run", "--out", tmp_path / "runs")
    assert answer.code == 2
    assert re.search(said, answer.err)
    assert len(answer.err) < 3000


def test_a_part_of_a_suite_needs_no_data_of_the_others(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_HERE", raising=False)
    path = tmp_path / "s.toml"
    path.write_text(
        'matcher = ["random", "herding"]\nipc = [1, 2]\nseeds = [0, 1]\n'
        '[[matrix]]\ndataset = "toy"\n'
        '[[matrix]]\ndataset = {name = "images", options = {root = "${NOT_HERE}"}, label = "pictures"}\n'
        '[[exclude]]\ndataset = "pictures"\nipc = 2\n'
    )
    cells = read(path, device="cpu", only={"dataset": {"toy"}, "ipc": {"1"}, "seeds": {"1"}}).cells
    assert [(c.spec.dataset.name, c.spec.ipc, c.spec.seed) for c in cells] == [("toy", 1, 1)] * 2
    whole = {c.key for c in read(path, device="cpu", dry=True).cells}
    assert {c.key for c in cells} < whole  # a part makes the runs of the whole
    with pytest.raises(UsageError, match="export NOT_HERE"):
        read(path, device="cpu", only={"dataset": {"pictures"}})
    with pytest.raises(UsageError, match="no cell with ipc=3"):
        read(path, device="cpu", dry=True, only={"ipc": {"3"}})


def test_a_suite_for_a_gpu_that_is_elsewhere_has_the_recipes_of_a_gpu(tmp_path, monkeypatch):
    """A login node without one sends what a node with one makes of the same request; no default batch is below 256."""
    monkeypatch.delenv("NOT_HERE", raising=False)
    path = tmp_path / "s.toml"
    path.write_text(
        '[[matrix]]\nmatcher = "tesla"\nipc = 10\n'
        'dataset = {name = "images", options = {root = "${NOT_HERE}"}, label = "pictures"}\n'
    )
    far = read(path, device="cuda", dry=True, remote=True)
    near = read(path, device="cpu", dry=True, remote=True)
    (gpu,), (cpu,) = far.cells, near.cells
    assert (gpu.spec.device, cpu.spec.device) == ("cuda", "cpu")
    assert gpu.spec.experts.batch == 256 > (cpu.spec.experts.batch or 0)
    assert (gpu.spec.matcher.batch_syn, cpu.spec.matcher.batch_syn) == (None, 50)
    assert far.unfitted == near.unfitted == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there
    assert resolve(replace(gpu.request, here=True)).spec.key == replace(gpu.spec, threads=usual_threads()).key


def test_a_plan_for_a_device_that_is_elsewhere_has_its_settings(tmp_path):
    """The cost of a cell on an H200 is that of a GPU's recipe, whether a suite is planned or `ddbench cost` asked."""
    place = pictures.folder(tmp_path / "cats", pictures.tree(train=30))
    path = tmp_path / "s.toml"
    path.write_text(f'[[matrix]]\ndataset = "images:{place}"\nmatcher = "tesla"\nipc = 10\n')
    plan = ("suite", "run", path, "--dry-run", "--json", "--out", tmp_path / "runs")
    planned = ddbench(*plan, "--cost-device", "h200", home=tmp_path).json
    named = ddbench(*plan, "--cost-device", "h200", "--device", "cuda", home=tmp_path).json
    asked = ddbench("cost", path, "--device", "h200", "--json", home=tmp_path).json
    assert planned["cells"][0]["device"] == "cuda"
    assert planned == named
    seconds = 3600 * sum(asked["runs"][0][part] for part in ("experts", "distilling", "grading"))
    assert planned["cells"][0]["cost_seconds"] == pytest.approx(seconds)
    refused = ddbench(*plan, "--cost-device", "h20", home=tmp_path)
    assert (refused.code, "no rates of a device called 'h20'" in " ".join(refused.err.split())) == (2, True)


def test_a_suite_for_a_gpu_here_needs_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "s.toml"
    path.write_text('[[matrix]]\ndataset = "toy"\nmatcher = "random"\nipc = 1\n')
    with pytest.raises(UsageError, match="no CUDA device here"):
        read(path, device="cuda")


def test_the_command_takes_a_part_and_says_what_parts_are(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('[[matrix]]\ndataset = "toy"\nmatcher = ["random", "herding"]\nipc = [1, 2]\n')
    plan = ddbench("suite", "run", path, "--dry-run", "--json", "--only", "matcher=herding", "--only", "ipc=2,7").json
    assert plan["total"]["to_do"] == 1
    answer = ddbench("suite", "run", path, "--only", "matchers=herding")
    assert answer.code == 2
    assert "must be an axis (dataset, network, ipc" in answer.err
