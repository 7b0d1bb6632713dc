"""The rule for anybody's images where settings counted in epochs fail: few images, and many."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import THREAD

import ddbench


def photos(folder: Path, count: int) -> Path:
    """``count`` digits to train on, drawn anew with shifts and noise where there are not so many, and 450 for tests."""
    digits, draw = load_digits(), np.random.default_rng(0)
    order = draw.permutation(len(digits.images))
    for part, rows, number in (("train", order[450:], count), ("test", order[:450], 450)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
        for k in range(number):
            row = rows[k % len(rows)]
            image = digits.images[row] * 255 / 16
            if k >= len(rows):
                image = np.roll(image, draw.integers(-1, 2, 2), (0, 1)) + draw.normal(0, 12, image.shape)
            Image.fromarray(image.clip(0, 255).round().astype(np.uint8)).save(
                folder / part / str(digits.target[row]) / f"{k:05d}.png"
            )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, 20_000])
def test_images_that_say_nothing_but_their_number_end_above_random_ones(tmp_path, monkeypatch, count):
    """Counted in epochs, experts of 500 images learned nothing in 48 steps, and segments of 20,000 were 600 long."""
    for name, value in THREAD.items():
        monkeypatch.setenv(name, value)
    made = ddbench.distil(
        f"images:{photos(tmp_path / 'photos', count)}",
        ipc=1,
        out=tmp_path / "runs",
        device="cpu",
        ceiling=False,
        quiet=True,
        network_options={"width": 8},
        dataset_options={"flip": False},
    )
    assert made.folder is not None
    result = json.loads((made.folder / "result.json").read_text())
    experts = result["stages"][0]["experts"]["accuracies"]
    assert max(experts) > 0.5, "a set teaches no more than its experts know"
    assert result["random"][0]["above"], result["random"]
    assert not result.get("warnings")
