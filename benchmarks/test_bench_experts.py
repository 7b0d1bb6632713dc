"""The time of expert epochs: ddbench's, one at a time and together, against a plain loop over a DataLoader."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ddbench import DSA, Experts, Network, Preprocessing, RealData, Recipe, Seed, Starts, Teaching
from ddbench.base.cache import Cache
from ddbench.plugins import registry

DEVICE = os.environ.get("DDBENCH_DEVICE", "cpu")
IMAGES, WIDTH, EXPERTS = (50_000, 128, 10) if DEVICE == "cuda" else (2_000, 16, 2)
SHAPE, CLASSES, BATCH, LR = (3, 32, 32), 10, 256, 0.01
STRATEGY = "color_crop_cutout_flip_scale_rotate"
EPOCHS = 1


def data() -> RealData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, *SHAPE), dtype=torch.uint8, generator=generator)
    return RealData(pixels, torch.arange(IMAGES) % CLASSES, Preprocessing.fit(pixels), CLASSES).to(DEVICE)


def network() -> Network:
    return Network(registry().get("network", "convnet").cls(width=WIDTH), SHAPE, CLASSES, torch.device(DEVICE))


def plain_loop(folder: Path) -> None:
    """As the published scripts: floats in a TensorDataset, a DataLoader, a module, an optimiser; one by one."""
    real, source = data(), network().source
    whole = real[torch.arange(len(real))]
    loader = DataLoader(TensorDataset(whole.images.cpu(), real.targets), BATCH, shuffle=True)
    for index in range(EXPERTS):
        module = source.build(SHAPE, CLASSES).to(DEVICE)
        optimiser = torch.optim.SGD(module.parameters(), LR)
        snapshots = [[p.detach().cpu().clone() for p in module.parameters()]]
        for _ in range(EPOCHS):
            for images, targets in loader:
                shown = DSA(STRATEGY).draw(len(images))(images.to(DEVICE))
                loss = cross_entropy(module(shown), targets.to(DEVICE))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            snapshots.append([p.detach().cpu().clone() for p in module.parameters()])
        torch.save(snapshots, folder / f"{index}.pt")


def experts(folder: Path, together: bool) -> None:
    recipe = Recipe(epochs=EPOCHS, batch=BATCH, lr=LR, augment=STRATEGY)
    starts = Starts(network(), Seed(0), Teaching(Recipe()), Cache(folder), torch.get_num_threads())
    Experts(starts, data(), recipe, together).build(EXPERTS, range(EPOCHS + 1))


WAYS = {
    "a loop over a DataLoader": plain_loop,
    "ddbench, one at a time": lambda folder: experts(folder, False),
    "ddbench, together": lambda folder: experts(folder, True),
}


@pytest.mark.benchmark(timer=time.perf_counter if DEVICE == "cuda" else time.process_time)
@pytest.mark.parametrize("way", WAYS)
def test_expert_epochs(benchmark, way, tmp_path_factory):
    benchmark.group = f"{EXPERTS} experts x {EPOCHS} epoch of {IMAGES} images, ConvNet of width {WIDTH}, {DEVICE}"

    def work() -> None:
        WAYS[way](tmp_path_factory.mktemp("experts"))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(work, rounds=3, warmup_rounds=1)
