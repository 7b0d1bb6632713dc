"""Random crops of real images, and images tiled from them, in pixels of 8 bits.

On pixels, since an image cannot be cropped once it is whitened. Shapes: n images, m cells, c channels, h x w pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def draw_boxes(count: int, sides: tuple[int, int], smallest: float) -> Tensor:
    """``count`` random boxes ``(count, 4)`` int64: top, left, height and width, in images of ``sides`` (h, w).

    As torchvision's RandomResizedCrop: the area is a uniform share of the image's from ``smallest`` to 1, the place
    uniform. Boxes have the shape of the image, as those of RDED, which are squares in square images.
    """
    drawn = torch.rand(count, 3, dtype=torch.float64)
    scale = (smallest + (1 - smallest) * drawn[:, 0]).sqrt()
    columns = []
    for side, place in zip(sides, drawn[:, 1:].unbind(1), strict=True):
        length = (scale * side).round().clamp_min(1)
        columns.append(((place * (side - length + 1)).floor(), length))
    (top, height), (left, width) = columns
    return torch.stack([top, left, height, width], 1).long()


def cut(pixels: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of each image ``(n, c, h, w)`` uint8 in its box ``(n, 4)``, resized to ``size`` with antialiasing."""
    made = pixels.new_empty(len(pixels), pixels.shape[1], *size)
    kinds, kind_of = boxes[:, 2:].unique(dim=0, return_inverse=True)
    for kind, (height, width) in enumerate(kinds.tolist()):  # boxes of one size are cut and resized together
        of_kind = torch.nonzero(kind_of == kind).flatten()
        rows = boxes[of_kind, 0, None] + torch.arange(height)
        columns = boxes[of_kind, 1, None] + torch.arange(width)
        parts = pixels[of_kind[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).float()
        if (height, width) != size:
            parts = interpolate(parts, size=size, mode="bilinear", antialias=True, align_corners=False)
        made[of_kind] = parts.round().clamp(0, 255).to(torch.uint8)
    return made


def surround(cells: Tensor, sides: tuple[int, int], blank: Tensor) -> Tensor:
    """``cells`` ``(m, c, h', w')`` in the middle of ``(m, c, *sides)`` images, otherwise ``blank`` (c, h, w)."""
    if tuple(cells.shape[2:]) == sides:
        return cells
    images = blank.expand(len(cells), *blank.shape).clone()
    top, left = ((side - own) // 2 for side, own in zip(sides, cells.shape[2:], strict=True))
    images[:, :, top : top + cells.shape[2], left : left + cells.shape[3]] = cells
    return images


def tile(cells: Tensor, factor: int, sides: tuple[int, int]) -> Tensor:
    """``cells`` ``(n factor^2, c, h', w')``, best first, as ``(n, c, *sides)`` images, each a grid of ``factor`` rows.

    Image i has the cells i, n + i, 2n + i, ..., row by row, so that all images have cells of about the same rank. Where
    ``factor`` does not divide a side, the first cells are one pixel longer, of nearest neighbours, as published.
    """
    count = len(cells) // factor**2
    whole = cells.new_empty(count, cells.shape[1], *sides)
    rows, columns = _edges(sides[0], factor), _edges(sides[1], factor)
    for place in range(factor**2):
        (top, bottom), (left, right) = rows[place // factor], columns[place % factor]
        part = cells[place * count : (place + 1) * count]
        whole[:, :, top:bottom, left:right] = interpolate(part, size=(bottom - top, right - left), mode="nearest")
    return whole


def _edges(side: int, parts: int) -> list[tuple[int, int]]:
    """Where each of ``parts`` begins and ends; the first ones are the longer ones."""
    lengths = [side // parts + (part < side % parts) for part in range(parts)]
    ends = [sum(lengths[: part + 1]) for part in range(parts)]
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
