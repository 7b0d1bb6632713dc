"""Data of a thousand classes: how fast they are drawn, and that memory does not grow with their number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scale import CLASSES, load, make

PER_CLASS = 200  # 200,000 images of 3x64x64: 2.5 GB on disk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale")
    make(path, PER_CLASS)
    yield path
    (path / "pixels.npy").unlink()


@pytest.fixture(scope="module")
def train(folder):
    real = load(folder).train
    assert len(real.members) == CLASSES
    return real


def test_a_full_pass_stays_within_its_memory(folder):
    """A process of its own, so that nothing else is counted: 1.5 GiB beyond torch's own is the bound."""
    script = Path(__file__).with_name("scale.py")
    done = subprocess.run([sys.executable, script, "data", folder], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.split("\n", 1)[1])
    assert found["images"] == CLASSES * PER_CLASS
    assert found["finite"]
    assert found["anonymous memory at the peak, beyond torch's own (MiB)"] < 1536


def test_one_image_of_every_class(benchmark, train):
    batch = benchmark(train.draw, 1)
    assert batch.images.shape == (CLASSES, 3, 64, 64)


def test_128_images_of_one_class(benchmark, train):
    batch = benchmark(train.draw, 128, [7])
    assert int(batch.labels.argmax(1).unique()) == 7


def test_a_random_batch_of_256(benchmark, train):
    import torch

    index = torch.randperm(len(train))[:256]
    assert len(benchmark(train.__getitem__, index)) == 256
