"""Fog, brightness and contrast. Images are ``(n, c, h, w)`` in [0, 1], severities 0 to 4.

The numbers are those of CIFAR-10-C.
"""

from __future__ import annotations

import torch
from torch import Tensor

FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # thickness; how fast it smooths out
LIGHT = (0.05, 0.1, 0.15, 0.2, 0.3)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)


def brightness(images: Tensor, severity: int) -> Tensor:
    """The value of HSV, the brightest channel, rises; hue and saturation stay. Of one channel, this is a sum."""
    value = images.amax(1, keepdim=True)
    raised = (value + LIGHT[severity]).clamp_max(1)
    return torch.where(value > 0, images * raised / value.clamp_min(1e-6), raised)


def contrast(images: Tensor, severity: int) -> Tensor:
    """Nearer to the mean of each channel of each image."""
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * CONTRAST[severity] + means


def fog(images: Tensor, severity: int) -> Tensor:
    """Plasma noise on top, the same for all channels, scaled so that the brightest value stays."""
    thickness, decay = FOG[severity]
    n, _, h, w = images.shape
    brightest = images.amax((1, 2, 3), keepdim=True)
    clouds = plasma(n, max(h, w), decay)[:, None, :h, :w]
    return (images + thickness * clouds) * brightest / (brightest + thickness)


def plasma(n: int, side: int, decay: float) -> Tensor:
    """``(n, s, s)`` in [0, 1], s the next power of two: diamond-square noise that wraps around at the edges.

    As in CIFAR-10-C the noise of a level has the amplitude ``wibble`` squared, which shrinks by ``decay`` squared.
    """
    side = max(2, 1 << (side - 1).bit_length())
    field, step, wibble = torch.zeros(n, side, side), side, 100.0

    def mid(total: Tensor) -> Tensor:
        return total / 4 + wibble**2 * (2 * torch.rand(total.shape) - 1)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        across = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = mid(across + across.roll(-1, 2))
        centres = field[:, half::step, half::step]
        beside = corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = mid(centres + centres.roll(1, 1) + beside)
        field[:, half::step, ::step] = mid(centres + centres.roll(1, 2) + across)
        step, wibble = half, wibble / decay
    field -= field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)
