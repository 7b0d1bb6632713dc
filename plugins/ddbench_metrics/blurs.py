"""Blurs. Images are ``(n, c, h, w)`` in [0, 1], severities 0 to 4; lengths are in pixels of CIFAR-10 (``unit``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ddbench_metrics.sampling import places, read, unit

# CIFAR-10-C blurs with the pixels of a disc (of one pixel, for the first three severities) smeared by a Gaussian of
# three pixels. A disc of these radii, evenly weighted, spreads light as far (variances 0.08, 0.21, 0.33, 0.40, 0.67).
RADIUS = (0.19, 0.50, 0.78, 0.94, 1.42)
# Deviation of half a Gaussian along the motion. CIFAR-10-C sums it pixel by pixel with deviations of 1 to 2.5; these
# trails move light as far on average (0.5, 0.9, 1.3, 1.3, 1.7 pixels).
TRAIL = (0.65, 1.14, 1.63, 1.63, 2.13)
FARTHEST = 3.5  # deviations up to which a trail is followed
STEEPEST = math.pi / 4  # motion is drawn from -45 to 45 degrees
NEAREST = (1.05, 1.10, 1.15, 1.20, 1.25)  # last of the zooms 1, 1.01, 1.02, ... that are averaged
FINE = 41  # samples across a disc


def defocus(images: Tensor, severity: int) -> Tensor:
    """The mean over a disc around each pixel."""
    c = images.shape[1]
    kernel = disc(RADIUS[severity] * unit(images))
    reach = len(kernel) // 2
    return conv2d(pad(images, (reach,) * 4, mode="replicate"), kernel.expand(c, 1, -1, -1).contiguous(), groups=c)


def disc(radius: float) -> Tensor:
    """Weights ``(k, k)``, with sum 1, of the pixels around one: an evenly filled disc, bilinear between pixels."""
    reach = math.floor(radius) + 1
    fine = torch.linspace(-radius, radius, FINE, dtype=torch.float64)
    y, x = torch.meshgrid(fine, fine, indexing="ij")
    inside = (x.square() + y.square() <= radius**2 + 1e-12).double()
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    near = (1 - (fine[:, None] - grid).abs()).clamp_min(0)  # (fine, k): how much of a sample each pixel gets
    return (near.T @ inside @ near / inside.sum()).float()


def motion(images: Tensor, severity: int) -> Tensor:
    """Each image trails off in a direction of its own, with the weights of half a Gaussian."""
    deviation = TRAIL[severity] * unit(images)
    angle = (2 * torch.rand(len(images)) - 1).view(-1, 1, 1) * STEEPEST
    steps = max(8, math.ceil(2 * FARTHEST * deviation)) + 1  # half a pixel apart, or closer
    along = torch.linspace(0, FARTHEST * deviation, steps)
    weights = torch.exp(-0.5 * (along / deviation).square())
    weights[0] /= 2  # the trapezoidal rule: half a Gaussian begins here
    (x, y), total = places(images), torch.zeros_like(images)
    for distance, weight in zip(along.tolist(), (weights / weights.sum()).tolist(), strict=True):
        total += weight * read(images, x + distance * angle.cos(), y + distance * angle.sin())
    return total


def zoom(images: Tensor, severity: int) -> Tensor:
    """The mean of the image and of zooms into its middle."""
    (x, y), total = places(images), images.clone()
    middle_y, middle_x = (images.shape[2] - 1) / 2, (images.shape[3] - 1) / 2
    factors = [1 + step / 100 for step in range(round(100 * (NEAREST[severity] - 1)) + 1)]
    for factor in factors:
        total += read(images, middle_x + (x - middle_x) / factor, middle_y + (y - middle_y) / factor)
    return total / (len(factors) + 1)
