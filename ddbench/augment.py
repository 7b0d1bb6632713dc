"""DSA: differentiable siamese augmentation (Zhao & Bilen, ICML 2021), drawn apart from being applied.

Mode S: one operation is drawn for the whole batch, its parameters for each image (or one set for all,
siamese). ``draw`` gives a :class:`Draw` that can be applied again and again, so that both passes of an
unrolled gradient see the same images. Draws come from torch's CPU generator, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ddbench.errors import UsageError

# The published strengths (methods in DC, DSA, MTT, TESLA, PDD).
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_PAD, CUTOUT, SCALE, ROTATE = 0.125, 0.5, 1.2, 15.0


@dataclass(frozen=True, eq=False)
class Draw:
    """One drawn augmentation: an operation and its parameters, a row for each image of a batch."""

    operation: str
    parameters: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images ``(n, c, h, w)``, differentiably."""
        if self.operation == "none":
            return images
        return _OPERATIONS[self.operation].apply(images, self.parameters.to(images.device, images.dtype))


NO_DRAW = Draw("none", torch.empty(0))


@dataclass(frozen=True)
class DSA:
    """A strategy such as ``color_crop_cutout_flip_scale_rotate``; an empty one augments nothing."""

    strategy: str = ""

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in _OPERATIONS:
                raise UsageError(f"unknown augmentation {name!r}; valid ones: {', '.join(_OPERATIONS)}")

    @property
    def operations(self) -> list[str]:
        return [part for part in self.strategy.split("_") if part]

    def draw(self, count: int, *, siamese: bool = False) -> Draw:
        """Draw one operation, with parameters for ``count`` images (the same for all when siamese)."""
        operations = self.operations
        if not operations:
            return NO_DRAW
        name = operations[int(torch.randint(len(operations), ()))]
        rows = 1 if siamese else count
        parameters = _OPERATIONS[name].draw(rows)
        return Draw(name, parameters.expand(count, -1))


@dataclass(frozen=True)
class _Operation:
    draw: Callable[[int], Tensor]  # n -> (n, p) uniform parameters
    apply: Callable[[Tensor, Tensor], Tensor]  # (n, c, h, w), (n, p) -> (n, c, h, w)


def _column(parameters: Tensor, index: int) -> Tensor:
    return parameters[:, index].view(-1, 1, 1, 1)


def _color(x: Tensor, p: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast; no clamping, which would kill gradients."""
    x = x + (_column(p, 0) - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (_column(p, 1) * SATURATION) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (_column(p, 2) + CONTRAST) + mean


def _flip(x: Tensor, p: Tensor) -> Tensor:
    return torch.where(_column(p, 0) < 0.5, x.flip(3), x)


def _crop(x: Tensor, p: Tensor) -> Tensor:
    """Shift by whole pixels up to h/8 and w/8, filling with zeros."""
    n, c, h, w = x.shape
    reach_y, reach_x = int(h * CROP_PAD + 0.5), int(w * CROP_PAD + 0.5)
    down = (p[:, 0] * (2 * reach_y + 1)).floor().long() - reach_y
    right = (p[:, 1] * (2 * reach_x + 1)).floor().long() - reach_x
    rows = torch.arange(h, device=x.device).view(1, h) + down.view(n, 1)  # (n, h) source rows
    columns = torch.arange(w, device=x.device).view(1, w) + right.view(n, 1)  # (n, w)
    inside = ((rows >= 0) & (rows < h)).unsqueeze(2) & ((columns >= 0) & (columns < w)).unsqueeze(1)
    source = rows.clamp(0, h - 1).unsqueeze(2) * w + columns.clamp(0, w - 1).unsqueeze(1)  # (n, h, w)
    index = source.view(n, 1, h * w).expand(n, c, h * w)
    return x.flatten(2).gather(2, index).view_as(x) * inside.unsqueeze(1)


def _cutout(x: Tensor, p: Tensor) -> Tensor:
    """A square hole of half the size, centred anywhere."""
    _, _, h, w = x.shape
    size_y, size_x = int(h * CUTOUT + 0.5), int(w * CUTOUT + 0.5)
    centre_y = (p[:, 0] * (h + 1 - size_y % 2)).floor().view(-1, 1)
    centre_x = (p[:, 1] * (w + 1 - size_x % 2)).floor().view(-1, 1)
    y, column = torch.arange(h, device=x.device).view(1, h), torch.arange(w, device=x.device).view(1, w)
    hole_y = (y >= centre_y - size_y // 2) & (y < centre_y - size_y // 2 + size_y)  # (n, h)
    hole_x = (column >= centre_x - size_x // 2) & (column < centre_x - size_x // 2 + size_x)
    return x * ~(hole_y.unsqueeze(2) & hole_x.unsqueeze(1)).unsqueeze(1)


def _sample(x: Tensor, matrix: Tensor) -> Tensor:
    grid = affine_grid(matrix, list(x.shape), align_corners=True)
    return grid_sample(x, grid, align_corners=True)


def _scale(x: Tensor, p: Tensor) -> Tensor:
    """Both axes independently, from 1/1.2 to 1.2."""
    factor = p * (SCALE - 1 / SCALE) + 1 / SCALE
    zero = torch.zeros_like(factor[:, 0])
    rows = [torch.stack([factor[:, 0], zero, zero], 1), torch.stack([zero, factor[:, 1], zero], 1)]
    return _sample(x, torch.stack(rows, 1))


def _rotate(x: Tensor, p: Tensor) -> Tensor:
    angle = (p[:, 0] - 0.5) * 2 * ROTATE * math.pi / 180
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    return _sample(x, torch.stack(rows, 1))


_OPERATIONS = {
    "color": _Operation(lambda n: torch.rand(n, 3), _color),
    "crop": _Operation(lambda n: torch.rand(n, 2), _crop),
    "cutout": _Operation(lambda n: torch.rand(n, 2), _cutout),
    "flip": _Operation(lambda n: torch.rand(n, 1), _flip),
    "scale": _Operation(lambda n: torch.rand(n, 2), _scale),
    "rotate": _Operation(lambda n: torch.rand(n, 1), _rotate),
}
