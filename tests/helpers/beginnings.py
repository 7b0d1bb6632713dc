"""Start networks and experts of a tiny network on made-up data."""

from __future__ import annotations

from collections import Counter

import torch
from ddbench_networks import ConvNet
from sets import some_set

from ddbench import (
    Curriculum,
    Experts,
    Network,
    Preprocessing,
    RealData,
    Recipe,
    Seed,
    Starts,
    Teaching,
)
from ddbench.base.cache import Cache
from ddbench.base.progress import Event
from ddbench.errors import InterruptedRun

SHAPE, CLASSES = (3, 8, 8), 3
NETWORK = Network(ConvNet(width=3, depth=2), SHAPE, CLASSES)
RECIPE = Recipe(batch=4, lr=0.05, momentum=0.9, augment="color_crop_flip")


SETS = tuple(some_set(n, j, labels="hard", lr=lr) for j, (n, lr) in enumerate([(5, 0.03), (6, None), (3, 0.02)]))


def curriculum(stages: int) -> Curriculum:
    return Curriculum(SETS[:stages], tuple(tuple(range(j + 1)) for j in range(stages)))


def real(n: int = 20) -> RealData:
    pixels = torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    return RealData(pixels, torch.arange(n) % CLASSES, Preprocessing.fit(pixels), CLASSES)


def starts(cache: Cache, stages: int = 0, **changes) -> Starts:
    options = {"teaching": Teaching(RECIPE, steps=9, phases=3), "count": 3} | changes
    return Starts(NETWORK, Seed(4), cache=cache, taught=curriculum(stages), **options)


def files(cache: Cache, ending: str = ".safetensors") -> set[str]:
    return {str(p.relative_to(cache.root)) for p in cache.root.rglob(f"*{ending}")}


class Counting:
    """Counts the epochs that were trained, by what was trained; interrupts after one of them on request."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.stop_at = stop_at

    def __call__(self, event: Event) -> None:
        self.counts[event.what] += 1
        if self.stop_at == (event.what, self.counts[event.what]):
            raise InterruptedRun("stopped here")

    @property
    def trained(self) -> int:
        return sum(n for what, n in self.counts.items() if what != "experts")


def experts(cache: Cache, stages: int = 0, recipe: Recipe = RECIPE, **changes) -> Experts:
    return Experts(starts(cache, stages, **changes), real(), recipe)
