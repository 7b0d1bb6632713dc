"""CDA: crops that show whole images first and smaller parts later, while images are recovered.

Yin & Shen, "Dataset Distillation via Curriculum Data Synthesis in Large Data Era", TMLR 2024 (arXiv 2311.18838, 2023).
Shapes: b images of a batch, c channels, h x w pixels.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from ddbench import Problem

Mode = Literal["none", "step", "linear", "cosine"]
Curriculum = Annotated[Mode, "how the least area of a random crop falls from 1 over the iterations; none: no crops"]
Milestone = Annotated[float, Gt(0), Le(1), "share of the iterations after which it has fallen"]
Smallest = Annotated[float, Gt(0), Le(1), "share of an image's area to which it falls"]
RATIO = (3 / 4, 4 / 3)  # of a crop's sides, as in torchvision


def least_area(mode: Mode, k: int, steps: int, milestone: float, smallest: float) -> float:
    """The least share of an image's area that a crop shows in iteration ``k`` of ``steps``."""
    part = k / (milestone * steps)
    if part >= 1:
        return smallest
    kept = {"step": 1.0, "linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2}[mode]
    return smallest + (1 - smallest) * kept


def cropped(problem: Problem, images: Tensor, least: float) -> Tensor:
    """One random resized crop of at least this share of the area for all ``(b, c, h, w)``, mirrored half the time.

    One for a batch, as in the code; mirrored only where the dataset's own augmentation mirrors.
    """
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.functional import resized_crop

    box = RandomResizedCrop.get_params(images, [least, 1.0], list(RATIO))
    shown = resized_crop(images, *box, size=list(images.shape[2:]), antialias=True)
    return shown.flip(3) if "flip" in problem.dsa.operations and torch.rand(()) < 0.5 else shown
