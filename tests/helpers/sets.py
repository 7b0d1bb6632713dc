"""Synthetic sets of noise."""

from __future__ import annotations

from typing import Any

import torch
from ddbench_networks import ConvNet

from ddbench import Network, Seed, SyntheticSet, Teacher


def some_set(
    count: int,
    seed: int = 0,
    *,
    shape: tuple[int, ...] = (3, 8, 8),
    classes: int = 3,
    labels: str = "soft",
    **more: Any,
) -> SyntheticSet:
    """Random images, whose labels are ``hard`` (the classes in turn), ``soft`` (distributions) or ``raw`` numbers."""
    generator = torch.Generator().manual_seed(seed)
    images, rows = torch.randn(count, *shape, generator=generator), torch.randn(count, classes, generator=generator)
    made = {"hard": torch.eye(classes)[torch.arange(count) % classes], "soft": rows.softmax(1), "raw": rows}
    return SyntheticSet(images, made[labels], **more)


def some_teacher() -> Teacher:
    """A fresh network that labels images of shape (1, 8, 8) in three classes."""
    source = ConvNet(width=3, depth=1)
    return Teacher(source, Network(source, (1, 8, 8), 3).init(Seed(9)))
