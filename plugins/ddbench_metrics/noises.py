"""Corruptions that act on every value alone. Images are ``(n, c, h, w)`` in [0, 1], severities 0 to 4.

The numbers are those of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019, released ``make_cifar_c.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

DEVIATION = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS = (500, 250, 100, 75, 50)  # that a white value stands for
REPLACED = (0.01, 0.02, 0.03, 0.05, 0.07)


def gaussian(images: Tensor, severity: int) -> Tensor:
    return images + DEVIATION[severity] * torch.randn(images.shape)


def shot(images: Tensor, severity: int) -> Tensor:
    """Poisson noise: as many photons as the value says, on average."""
    return torch.poisson(images * PHOTONS[severity]) / PHOTONS[severity]


def impulse(images: Tensor, severity: int) -> Tensor:
    """Salt and pepper: some values become 0 or 1, each channel for itself."""
    draw = torch.rand(images.shape)
    images = images.masked_fill(draw < REPLACED[severity] / 2, 0.0)
    return images.masked_fill(draw >= 1 - REPLACED[severity] / 2, 1.0)
