"""Sets that are not those of their budget are neither submitted nor ranked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from boardkit import board, made, pictured, posted

from ddbench.base.cache import file_digest, read_json, write_json
from ddbench.boards.submit import drafted, submit
from ddbench.errors import DataError, UsageError
from ddbench.grade.distilled import Distilled
from ddbench.problem.synthetic import Curriculum


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("runs"), seeds=(0,), ipc=2)[0]


def remade(run: Path, to: Path, told: bool = True, **parts: object) -> Path:
    """The run with another set in its place, and with a result that says so (``told``) or not."""
    folder = Path(shutil.copytree(run, to / run.name))
    path = folder / "distilled.safetensors"
    held = Distilled.load(path)
    (own,) = held.curriculum.sets
    change = {name: part(getattr(own, name)) if callable(part) else part for name, part in parts.items()}
    new = replace(own, **change)
    replace(held, curriculum=Curriculum((new,), held.curriculum.phases)).save(path)
    result = read_json(folder / "result.json")
    result["sha256"][path.name] = file_digest(path)
    if told:
        result |= {"images": len(new), "image_bytes": new.image_bytes, "label_bytes": new.label_bytes}
    write_json(folder / "result.json", result)
    return folder


NINE_TIMES = {"images": lambda x: x.repeat_interleave(9, 0), "labels": lambda y: y.repeat_interleave(9, 0)}


def soft(labels: torch.Tensor) -> torch.Tensor:
    return 0.9 * labels + 0.1 / labels.shape[1]


@pytest.mark.parametrize(
    ("parts", "told", "match"),
    [
        (NINE_TIMES, True, "54 images, but 2 for each of 3 classes"),
        (NINE_TIMES, False, "54 images, but 2 for each of 3 classes"),
        ({"images": lambda x: x[:5], "labels": lambda y: y[:5]}, True, "has 5 images, which are not 2 for each class"),
        ({"images": lambda x: torch.cat([x, x], 3)}, True, "images is .*, not torch.float32|bytes for 6 images"),
        ({"images": lambda x: x.double()}, True, "images is torch.float64"),
        ({"labels": lambda y: y.double()}, True, "labels is torch.float64"),
        ({"labels": lambda y: y.flip(0)}, True, "does not hold as many of each of its 3 classes, in order"),
        ({"labels": soft}, True, "labels that are said to be hard, and name no class"),
        ({"labels": soft, "label_type": "teacher"}, False, "bytes for hard labels|label bytes, but its result says"),
    ],
)
def test_a_set_that_is_not_that_of_its_budget_is_not_submitted(run, tmp_path, parts, told, match):
    rules = board(tmp_path / "boards", run, seeds=[0])
    with pytest.raises((UsageError, DataError), match=match):
        submit([remade(run, tmp_path, told, **parts)], rules, replace=False)
    assert not list((tmp_path / "boards").rglob("entries/*"))


def test_a_set_with_soft_labels_that_says_so_is_submitted(run, tmp_path):
    folder = remade(run, tmp_path, labels=soft, label_type="teacher")
    result = read_json(folder / "result.json")
    write_json(folder / "result.json", result | {"label_type": "teacher"})
    assert submit([folder], board(tmp_path / "boards", run, seeds=[0]), replace=False)


def edited(folder: Path, run: Path, **result: object) -> None:
    rules = board(folder, run, seeds=[0, 1])
    for name in ("one", "two"):
        entry = posted(rules, run, name, [0.5, 0.6], ipc=2, matcher="dm" if name == "one" else "random")
        if name == "two":
            for part in entry["runs"]:
                part["result"] |= result
            write_json(rules.folder / "entries" / "two.json", entry)
    rules.entries()


@pytest.mark.parametrize(
    ("result", "match"),
    [
        ({"images": 1020, "image_bytes": 1020 * 256}, "two.json breaks the rules of the board: .* 1,020 images"),
        ({"images": 7}, "two.json breaks the rules .* 7 images, which are not 2 for each class"),
        ({"images": None}, "two.json breaks the rules .* 0 images"),
        ({"image_bytes": 6}, "two.json breaks the rules .* 6 bytes for 6 images"),
        ({"label_type": "teacher"}, "two.json breaks the rules .* 6 bytes for teacher labels"),
        ({"label_bytes": 0}, "two.json breaks the rules .* 0 bytes for hard labels"),
    ],
)
def test_an_entry_beyond_its_budget_is_not_ranked(run, tmp_path, result, match):
    edited(tmp_path / "fine", run)
    with pytest.raises(DataError, match=match):
        edited(tmp_path / "odd", run, **result)


def test_a_board_that_says_its_classes_needs_no_second_entry_to_compare_with(run, tmp_path):
    rules = board(tmp_path, run, seeds=[0], dataset={"classes": 3, "shape": [1, 8, 8]})
    entry = posted(rules, run, "one", [0.5], ipc=2)
    result = entry["runs"][0]["result"]
    shape = Distilled.load(run / "distilled.safetensors").shape
    rules = board(tmp_path, run, seeds=[0], dataset={"classes": 3, "shape": list(shape)})
    assert rules.entries()
    result |= {"images": 12, "image_bytes": 2 * result["image_bytes"], "label_bytes": 12}
    write_json(rules.folder / "entries" / "one.json", entry)
    with pytest.raises(DataError, match="has 12 images, but 2 for each of 3 classes are 6"):
        rules.entries()


def test_a_picture_says_of_how_many_classes_the_images_may_be(run, tmp_path):
    rules = board(tmp_path, run, seeds=[0])
    entry = posted(rules, run, "one", [0.5], ipc=2, picture=pictured(rules, run))
    assert rules.entries()
    result = entry["runs"][0]["result"]
    result |= {n: 2 * result[n] for n in ("images", "image_bytes", "label_bytes")}
    write_json(rules.folder / "entries" / "one.json", entry)
    with pytest.raises(DataError, match="should have 6 images, which is 2 for each of its classes, and has 12"):
        rules.entries()


def test_a_board_that_is_founded_on_a_run_says_what_a_budget_is(run):
    text = drafted(run, "Toys", [], 2, 1)
    assert "classes = 3\nshape = [" in text
