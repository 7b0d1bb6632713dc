"""Differentiable augmentation, drawn apart from being applied: DSA's and IDC's.

| strategy | what one draw applies to a batch |
| --- | --- |
| ``color_crop_flip`` | one of the named operations: mode S of DSA (Zhao & Bilen, ICML 2021) |
| ``diffaug:color_crop_flip`` | those named, one after the other: DiffAug of IDC (Kim et al., ICML 2022) |

IDC's order is flip, colours, one of crop, scale, rotate and rrc (drawn for the batch), cutout. ``rrc50`` is a random
resized crop of at least 50 % of the area, as torchvision draws it for RDED (Sun et al., CVPR 2024). Parameters are
drawn for each image, or once for all (siamese). ``draw`` gives a :class:`Draw` that can be applied again and
again, so that both passes of an unrolled gradient see the same images, and so do real and synthetic ones.
Draws come from torch's CPU generator, on any device.

Operations act on images as networks see them, normalised or whitened; the pipelines of DSA, MTT and IDC
normalise before they augment, too. Brightness therefore moves by up to half a standard deviation, the zeros
that come in from outside are the mean colour, and nothing is clamped, which would kill gradients. A method
whose own images are pixels in [0, 1], as IDC's are, normalises them before it applies a draw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ddbench.errors import UsageError

# The published strengths (methods in DC, DSA, MTT, TESLA, PDD and IDC).
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_PAD, CUTOUT, SCALE, ROTATE = 0.125, 0.5, 1.2, 15.0

COMPOSED = "diffaug:"
COLOURS, SPATIAL = ("color", "brightness", "saturation", "contrast"), ("crop", "scale", "rotate")
RESIZED, RATIO, TRIES = re.compile(r"rrc([1-9]\d?)"), (3 / 4, 4 / 3), 10  # of random resized crops, as in torchvision


def strategy(asked: str, own: str) -> str:
    """The strategy that an option asks for, where ``dataset`` stands for the dataset's ``own``."""
    return own if asked == "dataset" else asked


@dataclass(frozen=True, eq=False)
class Draw:
    """One drawn augmentation: an operation, or several in order (``flip_color``), and their parameters.

    The parameters of all operations stand side by side, ``(n, p)``, a row for each image of a batch.
    A single row serves batches of any size, all images alike.
    """

    operation: str
    parameters: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images ``(n, c, h, w)``, differentiably."""
        if self.operation == "none":
            return images
        parameters = self.parameters.to(images.device, images.dtype, non_blocking=True)
        columns = iter(parameters[:, :, None, None, None].expand(len(images), -1, 1, 1, 1).unbind(1))
        for name in self.operation.split("_"):
            operation = _operation(name)
            images = operation.apply(images, *islice(columns, operation.width))
        return images


NO_DRAW = Draw("none", torch.empty(0))


@dataclass(frozen=True)
class DSA:
    """A strategy, as in the table above; an empty one augments nothing."""

    strategy: str = ""

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in _OPERATIONS and not RESIZED.fullmatch(name):
                valid = ", ".join(_OPERATIONS)
                raise UsageError(f"unknown augmentation {name!r}; valid ones: {valid}, rrc1 to rrc99")

    @property
    def composed(self) -> bool:
        """Whether operations follow each other, as in IDC, instead of one being drawn."""
        return self.strategy.startswith(COMPOSED)

    @property
    def operations(self) -> list[str]:
        """The named operations. ``color`` is brightness, saturation and contrast; each may be named alone."""
        return [part for part in self.strategy.removeprefix(COMPOSED).split("_") if part]

    def composing(self, names: Iterable[str]) -> DSA:
        """Those of ``names`` that this strategy has, applied one after the other."""
        return DSA(COMPOSED + "_".join(name for name in names if name in self.operations))

    def draw(self, count: int, *, siamese: bool = False) -> Draw:
        """Draw operations, and parameters for ``count`` images; siamese: one row, which fits any batch."""
        if not self.operations:
            return NO_DRAW
        names = self._choose()
        width = sum(_operation(name).width for name in names)
        return Draw("_".join(names), torch.rand(1 if siamese else count, width))

    def _choose(self) -> list[str]:
        """What one draw applies, in order."""
        names = self.operations
        if not self.composed:
            return [_one_of(names)]
        # The order is that of IDC's code, however they are named, and there too one spatial operation is drawn.
        spatial = [name for name in names if name in SPATIAL or RESIZED.fullmatch(name)]
        chosen = [name for name in ("flip", *COLOURS) if name in names]
        chosen += [_one_of(spatial)] if spatial else []
        return [*chosen, "cutout"] if "cutout" in names else chosen


def _one_of(names: list[str]) -> str:
    return names[int(torch.randint(len(names), ()))]


@dataclass(frozen=True)
class _Operation:
    width: int  # how many parameters, uniform in [0, 1), an image has
    apply: Callable[..., Tensor]  # (n, c, h, w), and ``width`` parameters (n, 1, 1, 1) -> (n, c, h, w)


def _brightness(x: Tensor, p: Tensor) -> Tensor:
    """Add between -1/2 and 1/2."""
    return x + (p - 0.5) * BRIGHTNESS


def _saturation(x: Tensor, p: Tensor) -> Tensor:
    """Stretch each pixel's distance from its grey value by a factor from 0 to 2."""
    grey = x.mean(1, keepdim=True)
    return (x - grey) * (p * SATURATION) + grey


def _contrast(x: Tensor, p: Tensor) -> Tensor:
    """Stretch all distances from the image's mean by a factor from 1/2 to 3/2."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (p + CONTRAST) + mean


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    return _contrast(_saturation(_brightness(x, brightness), saturation), contrast)


def _flip(x: Tensor, p: Tensor) -> Tensor:
    return torch.where(p < 0.5, x.flip(3), x)


def _pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of ``x`` at whole ``rows`` and ``columns``, broadcast to ``(n, 1, h, w)``; zeros outside of it."""
    n, c, h, w = x.shape
    near, beside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    inside = (near == rows) & (beside == columns)  # (n, 1, h, w)
    index = (near * w + beside).flatten(2).expand(n, c, h * w)
    return x.flatten(2).gather(2, index).view_as(x) * inside


def _crop(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift by whole pixels up to h/8 and w/8, filling with zeros."""
    _, _, h, w = x.shape
    reach_y, reach_x = int(h * CROP_PAD + 0.5), int(w * CROP_PAD + 0.5)
    rows = torch.arange(-reach_y, h - reach_y, device=x.device).view(h, 1)
    columns = torch.arange(-reach_x, w - reach_x, device=x.device)
    rows = rows + (down * (2 * reach_y + 1)).floor().long()
    columns = columns + (right * (2 * reach_x + 1)).floor().long()
    return _pixels(x, rows, columns)


def _cutout(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A square hole of half the size, centred anywhere."""
    _, _, h, w = x.shape
    size_y, size_x = int(h * CUTOUT + 0.5), int(w * CUTOUT + 0.5)
    # how far each row and column is below and beside the centre, (n, 1, h, 1) and (n, 1, 1, w)
    y = torch.arange(h, device=x.device).view(h, 1) - (down * (h + 1 - size_y % 2)).floor()
    column = torch.arange(w, device=x.device) - (right * (w + 1 - size_x % 2)).floor()
    hole_y = (y >= -(size_y // 2)) & (y < size_y - size_y // 2)
    hole_x = (column >= -(size_x // 2)) & (column < size_x - size_x // 2)
    return x * ~(hole_y & hole_x)


def _sample(x: Tensor, matrix: list[Tensor]) -> Tensor:
    """Bilinear samples at matrix @ (x, y, 1), with zeros outside; ``matrix`` is given as six rows of ``(n, 1, 1, 1)``.

    The grid's corners are the centres of corner pixels, as in MTT and TESLA; in the code of DSA and IDC, their edges.
    """
    grid = affine_grid(torch.cat(matrix, 1).view(-1, 2, 3), list(x.shape), align_corners=True)
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _four_taps(x, grid)  # torch refuses to differentiate grid_sample there
    return grid_sample(x, grid, align_corners=True)


def _four_taps(x: Tensor, grid: Tensor) -> Tensor:
    """What grid_sample computes, as gathers of the four pixels around each point times their weights.

    Slower, but torch can differentiate it twice in every version, and deterministically on CUDA.
    """
    _, _, h, w = x.shape
    x_at, y_at = grid.unsqueeze(1).unbind(4)  # (n, 1, h, w)
    column, row = (x_at + 1) * (w - 1) / 2, (y_at + 1) * (h - 1) / 2
    left, top = column.floor(), row.floor()
    below, beside = row - top, column - left
    left, top = left.long(), top.long()
    upper = _pixels(x, top, left) * (1 - beside) + _pixels(x, top, left + 1) * beside
    lower = _pixels(x, top + 1, left) * (1 - beside) + _pixels(x, top + 1, left + 1) * beside
    return upper * (1 - below) + lower * below


def _scale(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Both axes independently, from 1/1.2 to 1.2."""
    across, down = (p * (SCALE - 1 / SCALE) + 1 / SCALE for p in (across, down))
    zero = torch.zeros_like(across)
    return _sample(x, [across, zero, zero, zero, down, zero])


def _rotate(x: Tensor, p: Tensor) -> Tensor:
    angle = (p - 0.5) * 2 * ROTATE * math.pi / 180
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _sample(x, [cos, -sin, zero, sin, cos, zero])


def _resized_crop(x: Tensor, *p: Tensor, least: float) -> Tensor:
    """A rectangle of ``least`` to all of the area, at an aspect ratio from 3/4 to 4/3, resized to the whole (bilinear).

    As torchvision's RandomResizedCrop: of ``TRIES`` draws the first that fits, or all of the image. Its corners are
    not rounded to whole pixels.
    """
    places = torch.cat(p, 1).flatten(1).view(len(x), TRIES, 4)  # (n, tries, area and ratio and corner)
    _, _, h, w = x.shape
    area, ratio = places[..., 0] * (1 - least) + least, (places[..., 1] * 2 - 1) * math.log(RATIO[1])
    across, down = (area * h / w * ratio.exp()).sqrt(), (area * w / h * (-ratio).exp()).sqrt()  # shares of the sides
    fits = (across <= 1) & (down <= 1)
    first = torch.where(fits.any(1), fits.int().argmax(1), 0)
    rows = torch.arange(len(x), device=x.device)

    def chosen(values: Tensor, otherwise: float) -> Tensor:
        return torch.where(fits.any(1), values[rows, first], otherwise).view(-1, 1, 1, 1)

    across, down = chosen(across, 1.0), chosen(down, 1.0)
    left, top = chosen(places[..., 2], 0.5) * 2 - 1, chosen(places[..., 3], 0.5) * 2 - 1
    zero = torch.zeros_like(across)
    return _sample(x, [across, zero, left * (1 - across), zero, down, top * (1 - down)])


@cache
def _operation(name: str) -> _Operation:
    resized = RESIZED.fullmatch(name)
    if resized is None:
        return _OPERATIONS[name]
    return _Operation(4 * TRIES, partial(_resized_crop, least=int(resized[1]) / 100))


_OPERATIONS = {
    "color": _Operation(3, _color),
    "crop": _Operation(2, _crop),
    "cutout": _Operation(2, _cutout),
    "flip": _Operation(1, _flip),
    "scale": _Operation(2, _scale),
    "rotate": _Operation(1, _rotate),
    "brightness": _Operation(1, _brightness),
    "saturation": _Operation(1, _saturation),
    "contrast": _Operation(1, _contrast),
}
