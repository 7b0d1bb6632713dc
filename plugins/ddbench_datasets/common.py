"""What the sources share: the types of their common options, and the choice that ``limit`` makes."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ddbench import UsageError, stratified

Validation = Annotated[float, Gt(0), Lt(1), "fraction of the train images held out to select on"]
ZCA = Annotated[bool, "whiten the images (ZCA) instead of the mean/std step"]
Limit = Annotated[int | None, Ge(1), "use only this many train images, in class proportions; by default all"]

# A constant of the datasets, not of the run: every run with the same ``limit`` sees the same images.
SEED = 0
# Mirrored digits and patterns are other digits and patterns, so the DSA strategy has no flip.
NO_FLIP = "color_crop_cutout_scale_rotate"
FLIP = "color_crop_cutout_flip_scale_rotate"


def limited(targets: Tensor, limit: int | None) -> Tensor:
    """Indices of ``targets`` (n,) to train on, ascending: all, or a stratified choice of ``limit``.

    Raises UsageError when ``limit`` leaves a class without an image to train on and one to select on.
    """
    if limit is None:
        return torch.arange(len(targets))
    classes = len(targets.unique())
    if limit < 2 * classes:
        raise UsageError(
            f"dataset.limit={limit} is too small: {classes} classes need one image each to train on and one to "
            f"select on; ask for at least {2 * classes}"
        )
    return stratified(targets, limit, SEED)
