"""Corruptions that move pixels, or store them badly. Images are ``(n, c, h, w)`` in [0, 1], severities 0 to 4."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from ddbench_metrics.sampling import SIDE, places, read, unit

KEPT = (0.95, 0.9, 0.85, 0.75, 0.65)  # of the pixels along each side
QUALITY = (80, 65, 58, 50, 40)
# Of the shorter side: how far the corners of a triangle move, and the deviation of the waves; in pixels of CIFAR-10:
# how far waves reach. CIFAR-10-C filters uniform noise with the last and multiplies it by a number, which gives
# waves of this deviation.
CORNERS = (0.08, 0.07, 0.06, 0.05, 0.03)
WAVES = tuple(deviation / SIDE for deviation in (0.0, 0.041, 0.217, 0.407, 0.543))
REACH = (0.0, 6.4, 1.92, 1.28, 0.96)


def elastic(images: Tensor, severity: int) -> Tensor:
    """A random affine map, then smooth random displacements; beyond its edges an image is mirrored."""
    x, y = places(images)
    if WAVES[severity]:
        size = WAVES[severity] * min(images.shape[2:])
        dx, dy = (size * _waves(images, REACH[severity] * unit(images)) for _ in range(2))
        x, y = x + dx, y + dy
    a = _affine(images, CORNERS[severity] * min(images.shape[2:])).unsqueeze(-1).unsqueeze(-1)  # (n, 2, 3, 1, 1)
    return read(
        images, a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2], a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2], "reflection"
    )


def _affine(images: Tensor, jitter: float) -> Tensor:
    """``(n, 2, 3)``: for each image the map that takes three moved points back to where they were."""
    n, _, h, w = images.shape
    arm = min(h, w) / 3
    right, left, top, bottom = w / 2 + arm, w / 2 - arm, h / 2 - arm, h / 2 + arm
    points = torch.tensor([[right, bottom, 1], [right, top, 1], [left, top, 1]])
    moved = points.repeat(n, 1, 1)
    moved[:, :, :2] += jitter * (2 * torch.rand(n, 3, 2) - 1)
    return torch.linalg.solve(moved, points[:, :2].expand(n, 3, 2)).transpose(1, 2)


def _waves(images: Tensor, reach: float) -> Tensor:
    """Smooth noise ``(n, h, w)`` of deviation 1, from normal noise and a Gaussian of deviation ``reach``."""
    n, _, h, w = images.shape
    far = max(1, math.ceil(3 * reach))
    kernel = torch.exp(-0.5 * (torch.arange(-far, far + 1) / reach).square())
    kernel /= kernel.square().sum().sqrt()  # a sum of independent draws with these weights has deviation 1
    noise = torch.randn(n, 1, h + 2 * far, w + 2 * far)
    return conv2d(conv2d(noise, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def pixelate(images: Tensor, severity: int) -> Tensor:
    """Fewer pixels, each the mean of a box, and as large as before."""
    h, w = (max(1, int(side * KEPT[severity])) for side in images.shape[2:])

    def coarse(image: Image.Image) -> Image.Image:
        return image.resize((w, h), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _each(images, coarse)


def jpeg(images: Tensor, severity: int) -> Tensor:
    """Through a JPEG file, colour subsampled as PIL does by default."""

    def stored(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=QUALITY[severity])
        return Image.open(stream)

    return _each(images, stored)


def _each(images: Tensor, work: Callable[[Image.Image], Image.Image]) -> Tensor:
    """``work`` on every image as PIL has it: three channels are a colour picture, otherwise each is a grey one."""
    n, c, h, w = images.shape
    pixels = images.mul(255).round().to(torch.uint8)
    pictures = pixels.permute(0, 2, 3, 1) if c == 3 else pixels.reshape(n * c, h, w)
    done = [
        torch.frombuffer(bytearray(work(Image.fromarray(p.numpy())).tobytes()), dtype=torch.uint8) for p in pictures
    ]
    joined = torch.stack(done).float().div_(255)
    return joined.view(n, h, w, 3).permute(0, 3, 1, 2) if c == 3 else joined.view(n, c, h, w)
