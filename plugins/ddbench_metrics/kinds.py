"""The corruptions by name: uint8 images in, uint8 images out, as a function of kind, severity and block alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddbench import Seed
from ddbench_metrics import blurs, noises, shifts, tones

# images (n, c, h, w) in [0, 1], severity 0..4 -> images, to be clamped; draws come from torch's generator
Corruption = Callable[[Tensor, int], Tensor]

SEVERITIES = (1, 2, 3, 4, 5)
KINDS: dict[str, Corruption] = {
    "gaussian_noise": noises.gaussian,
    "shot_noise": noises.shot,
    "impulse_noise": noises.impulse,
    "defocus_blur": blurs.defocus,
    "motion_blur": blurs.motion,
    "zoom_blur": blurs.zoom,
    "fog": tones.fog,
    "brightness": tones.brightness,
    "contrast": tones.contrast,
    "elastic": shifts.elastic,
    "pixelate": shifts.pixelate,
    "jpeg": shifts.jpeg,
}
VALUES_AT_ONCE = 2_000_000  # pixels of all channels in a block: 650 images of 3x32x32, 13 of 3x224x224


def block_size(shape: tuple[int, int, int]) -> int:
    """Images of ``shape`` that are corrupted at a time; a function of the shape alone, since draws are per block."""
    return max(1, VALUES_AT_ONCE // math.prod(shape))


def corrupt(pixels: Tensor, kind: str, severity: int, block: int = 0) -> Tensor:
    """Block number ``block`` of a test set, ``(n, c, h, w)`` uint8, corrupted by ``severity`` 1 to 5; rounded."""
    with (Seed(0) / "corruption" / kind / severity / block).scope():
        images = KINDS[kind](pixels.float().div_(255), severity - 1)
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)
