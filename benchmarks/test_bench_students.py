"""The time of five students: one after the other, and together by one vectorised step."""

from __future__ import annotations

import os

import pytest
import torch

from ddbench import Examples, Network, Recipe, Seed, Student, fit
from ddbench.base.options import make
from ddbench.plugins import registry
from ddbench.train.fit_together import fit_together

STUDENTS, STEPS, CLASSES = 5, 20, 10
DEVICE = os.environ.get("DDBENCH_DEVICE", "cpu")
RECIPE = Recipe(
    steps=STEPS,
    batch=256,
    lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step-restart",
    augment="color_crop_cutout_flip_scale_rotate",
)
# network, options, image shape, images of the synthetic set
TASKS = {
    "digits ipc 1, convnet width 32 depth 2": ("convnet", {"width": 32, "depth": 2}, (1, 8, 8), 10),
    "digits ipc 10, convnet width 32 depth 2": ("convnet", {"width": 32, "depth": 2}, (1, 8, 8), 100),
    "digits ipc 10, mlp": ("mlp", {}, (1, 8, 8), 100),
    "CIFAR ipc 1, convnet width 32": ("convnet", {"width": 32}, (3, 32, 32), 10),
    "CIFAR ipc 10, convnet width 16": ("convnet", {"width": 16}, (3, 32, 32), 100),
    "CIFAR ipc 1, convnet width 128": ("convnet", {"width": 128}, (3, 32, 32), 10),
}


def apart(network: Network, begins: list[Student], examples: Examples, seeds: list[Seed]) -> list[Student]:
    return [fit(network, b, examples, RECIPE, s, what=None) for b, s in zip(begins, seeds, strict=True)]


def together(network: Network, begins: list[Student], examples: Examples, seeds: list[Seed]) -> list[Student]:
    return fit_together(network, begins, examples, RECIPE, seeds, lrs=[None] * len(begins), what=None)


@pytest.mark.parametrize("way", [apart, together], ids=["one at a time", "together"])
@pytest.mark.parametrize("task", TASKS)
def test_five_students(benchmark, task, way):
    plugin, options, shape, count = TASKS[task]
    network = Network(
        make(registry().get("network", plugin).cls, options, "network"), shape, CLASSES, torch.device(DEVICE)
    )
    seeds = [Seed(0) / i for i in range(STUDENTS)]
    begins = [Student(network.init(seed)) for seed in seeds]
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    examples = Examples(images, torch.eye(CLASSES, device=DEVICE)[torch.arange(count) % CLASSES])
    benchmark.group = f"{STUDENTS} students x {STEPS} steps: {task}"

    def work() -> list[Student]:
        ends = way(network, begins, examples, seeds)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return ends

    ends = benchmark.pedantic(work, rounds=3, warmup_rounds=1)
    assert all(end.vector.isfinite().all() for end in ends)
