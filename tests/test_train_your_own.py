"""The page on training one's own model: all of its blocks run, on photos that tell their class by their colour."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import THREAD
from torchvision.datasets import ImageFolder

import ddbench
from ddbench.files.exporter import export

PAGE = Path(__file__).parents[1] / "docs" / "train-your-own.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
COLOURS = {"1": (200, 40, 40), "2": (40, 200, 40), "10": (40, 40, 200)}  # natural order; text sorts 1, 10, 2
TINY = {
    "network_options": {"width": 8},
    "protocol_options": {"steps": 2, "lrs": 0.03, "judges": 1},
}


def photos(root: Path) -> None:
    noise = np.random.default_rng(0)
    for part, count in {"train": 12, "test": 2}.items():
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                levels = np.array(colour) + noise.integers(-30, 30, (40, 48, 3))
                Image.fromarray(levels.astype(np.uint8)).save(root / part / name / f"{i}.png")


def colours(batch: Any, normalise: Any) -> list[str]:
    """The class that each normalised image shows."""
    pixels = batch * torch.tensor(normalise.std).view(3, 1, 1) + torch.tensor(normalise.mean).view(3, 1, 1)
    return [list(COLOURS)[int(level)] for level in pixels.mean((2, 3)).argmax(1)]


def test_the_page_trains_models_whose_numbers_mean_the_classes_of_the_photos(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    for name, value in (THREAD | {"DDBENCH_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    real = ddbench.distil

    def small(dataset: str, **asked: Any) -> ddbench.Result:
        less = {"matcher": "random", "ipc": 2, "students": 1, "random": False, "ceiling": False, "device": "cpu"}
        return real(dataset, quiet=True, **{**asked, **less, **TINY})

    monkeypatch.setattr(ddbench, "distil", small)
    held: dict[str, Any] = {}
    seen: list[str] = []
    for block in BLOCKS:
        exec(block.replace("epochs=300", "epochs=1"), held)
        if "print(" not in block:
            continue
        classes = held["names"] if "names = " in block else held["train"].classes
        number = getattr(held["train"], "class_to_idx", None) if "names = " not in block else None
        number = number or {name: i for i, name in enumerate(classes)}
        for images, labels in held["DataLoader"](held["test"], batch_size=6):
            shown = colours(images, held["normalise"])
            assert sorted(set(shown)) == sorted(COLOURS), "the photos show their classes"
            assert labels.tolist() == [number[name] for name in shown]
        seen.append(block)
    assert len(seen) == 5
    assert re.findall(r"^(\w+): [\d.]+%$", capsys.readouterr().out, flags=re.M) == ["tensors", "pictures", "table"]
    assert len(held["test"]) == len(held["result"].test()) == 6
    first, label = held["result"].test(space="network")[0]
    assert (first.shape, label) == ((3, 32, 32), 0)
    with pytest.raises(IndexError):
        held["result"].test()[6]
    images, labels = zip(*ImageFolder("set", held["tensor"]), strict=True)
    plain = torch.stack(images).mean((2, 3)).argmax(1).tolist()
    assert [ImageFolder("set").classes[label] for label in labels] == [list(COLOURS)[level] for level in plain]
    _soft(held)


def _soft(held: dict[str, Any]) -> None:
    """A set with soft labels, whose columns the page brings into the order of ImageFolder."""
    made = held["result"].distilled
    (one,) = made.curriculum.sets
    rows = torch.rand(one.labels.shape, generator=torch.Generator().manual_seed(0)).softmax(1)
    soft = replace(one, labels=rows, label_type="soft")
    export(replace(made, curriculum=replace(made.curriculum, sets=(soft,))), "folder", Path("soft"))
    found = held["SoftFolder"]("soft", held["tensor"])
    order = [made.classes.index(name) for name in found.classes]
    assert order == [0, 2, 1]
    for i, (path, label) in enumerate(found.samples):
        assert torch.equal(found[i][1], rows[int(Path(path).stem)][order])
        assert int(found[i][1].argmax()) == label


@pytest.mark.slow
def test_a_model_learns_from_the_set_of_the_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    held: dict[str, Any] = {
        "result": ddbench.distil(
            "images:photos",
            matcher="random",
            ipc=5,
            students=1,
            quiet=True,
            random=False,
            ceiling=False,
            dataset_options={"size": 32},
            **TINY,
        )
    }
    for block in BLOCKS[1:]:
        exec(block.replace("epochs=300", "epochs=25"), held)
    said = dict(re.findall(r"^(\w+): ([\d.]+)%$", capsys.readouterr().out, flags=re.M))
    assert min(map(float, said.values())) > 90, said
