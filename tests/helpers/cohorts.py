"""Students in float64 that are trained one at a time and together, and how far the two ways are apart."""

from __future__ import annotations

import torch

from ddbench import Examples, Network, Recipe, Seed, Student
from ddbench.base.options import make
from ddbench.plugins import registry

SHAPE, CLASSES = (3, 16, 16), 4
SEEDS = [Seed(3) / i for i in range(3)]
AUGMENT = "color_crop_cutout_flip_scale_rotate"
TEN_STEPS = Recipe(
    steps=10, batch=5, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="step-restart", augment=AUGMENT
)
NETWORKS = {
    "instance norm": ("convnet", {"width": 4, "depth": 2}),
    "batch norm": ("convnet", {"width": 4, "depth": 2, "norm": "batch"}),
    "no norm": ("convnet", {"width": 4, "depth": 2, "norm": "none", "pooling": "max"}),
    "mlp": ("mlp", {}),
    "resnet": ("resnet18", {"width": 2}),
    "vit": ("vit", {"dim": 12, "depth": 1, "heads": 2}),
}


def network(name: str = "instance norm") -> Network:
    """A network of those above."""
    plugin, options = NETWORKS[name]
    return Network(make(registry().get("network", plugin).cls, options, "network"), SHAPE, CLASSES, dtype=torch.float64)


def examples(count: int = 12, seed: int = 0) -> Examples:
    """Noise with soft labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    return Examples(torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64), labels)


def gap(apart: list[Student], together: list[Student]) -> float:
    """The largest relative difference of two vectors."""
    pairs = zip(apart, together, strict=True)
    return max(float((a.vector - b.vector).norm() / a.vector.norm()) for a, b in pairs)
