"""Synthetic sets of noise."""

from __future__ import annotations

from typing import Any

import torch

from ddbench import SyntheticSet


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
