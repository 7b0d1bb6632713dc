"""Pixels in [0, 1], for methods that hold them to that: idc and ncfm.

They optimise pixels and normalise them inside the network; here images are normalised from the start. A pixel moves by
one where a normalised image moves by 1/std of its channel, so the two are the same but for a factor on learning rates.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ddbench import DSA, Problem
from ddbench.train.optimisers import Optimiser, State

Augment = Annotated[str, "operations before matching, as far as the dataset's own strategy has them"]


def pixel_unit(problem: Problem) -> Tensor | float:
    """How far a normalised image moves ``(1, c, 1, 1)`` when its pixel moves by one; 1 for whitened images.

    A step of Adam with learning rate r on pixels is one with r ``pixel_unit`` on images. A step against the gradient
    takes the square, since the gradient by a pixel is ``pixel_unit`` times that by an image.
    """
    std = problem.real.preprocessing.std
    return 1.0 if std is None else 1 / std.view(1, -1, 1, 1)


def moved(
    rule: Optimiser, images: Tensor, moments: State, rows: slice, gradient: Tensor, rate: float | Tensor
) -> tuple[Tensor, State]:
    """All ``images`` and their moments after a step by the ``gradient`` of some ``rows``: momentum moves the others."""
    whole = torch.zeros_like(images)
    whole[rows] = gradient
    return rule.update(images, moments, whole, rate)


def matching_augmentation(problem: Problem, wanted: str) -> DSA:
    """``wanted`` operations, one after the other, without those that the dataset's own strategy lacks."""
    return problem.dsa.composing(DSA(wanted).operations)
