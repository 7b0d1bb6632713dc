"""Reading images between their pixels, and lengths in them.

Shapes: n images, c channels, h x w pixels. Places are in pixels, (0, 0) at the centre of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

SIDE = 32  # pixels of CIFAR-10, whose lengths all others are scaled from
SMALLEST = 0.5  # what a length of one pixel there becomes at the least


def unit(images: Tensor) -> float:
    """How many pixels stand for one of CIFAR-10's: in proportion to the shorter side, but half a pixel or more."""
    return max(SMALLEST, min(images.shape[2:]) / SIDE)


def places(images: Tensor) -> tuple[Tensor, Tensor]:
    """x ``(1, 1, w)`` and y ``(1, h, 1)`` of every pixel."""
    h, w = images.shape[2:]
    return torch.arange(w, dtype=torch.float32).view(1, 1, w), torch.arange(h, dtype=torch.float32).view(1, h, 1)


def read(images: Tensor, x: Tensor, y: Tensor, beyond: str = "border") -> Tensor:
    """The images at places ``x, y`` that broadcast to ``(n, h, w)``, by bilinear interpolation.

    ``beyond`` the outermost pixels their values go on (``border``), or the image does, mirrored (``reflection``).
    """
    n, _, h, w = images.shape
    x, y = torch.broadcast_tensors(x, y)
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels
    grid = torch.stack((2 * x / max(1, w - 1) - 1, 2 * y / max(1, h - 1) - 1), -1).expand(n, h, w, 2)
    return grid_sample(images, grid, mode="bilinear", padding_mode=beyond, align_corners=True)
