"""A picture of a synthetic set: columns are classes, rows are images, stages are set apart by a gap."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ddbench.data.dataset import Preprocessing
from ddbench.problem.synthetic import Curriculum, SyntheticSet

MAX_CLASSES, MAX_ROWS = 20, 10  # per stage: a picture, not an archive
FEW_CLASSES, FEW_ROWS, LARGEST = 10, 2, 64  # of a glimpse; pixels of its images
GAP = 2


def preview(curriculum: Curriculum, preprocessing: Preprocessing, classes: int) -> bytes:
    """PNG of the sets, un-normalised to [0, 1]. Sets are class-major, as matchers make them."""
    rows: list[Tensor] = []
    for s in curriculum.sets:
        pixels = preprocessing.invert(s.images).cpu()
        per_class = len(s) // classes
        grid = pixels.view(classes, per_class, *pixels.shape[1:])[:MAX_CLASSES, :MAX_ROWS]
        rows += [_row(grid[:, i]) for i in range(grid.shape[1])]
        rows.append(torch.ones(rows[0].shape[0], 2 * GAP, rows[0].shape[2]))
    return _png(torch.cat(rows[:-1], 1), curriculum.sets[0].images.shape[2])


def glimpse(made: SyntheticSet, preprocessing: Preprocessing, classes: int) -> bytes:
    """PNG of the first images of the first classes of a set, un-normalised: small, whatever the set."""
    each = len(made) // classes
    columns, rows = min(classes, FEW_CLASSES), min(each, FEW_ROWS)
    chosen = torch.tensor([i * each + j for j in range(rows) for i in range(columns)], device=made.images.device)
    pixels = preprocessing.invert(made.images[chosen]).cpu()
    pixels = torch.nn.functional.interpolate(pixels, glimpse_sides(pixels.shape[2:]), mode="area")
    return _png(torch.cat([_row(part) for part in pixels.split(columns)], 1), pixels.shape[2])


def glimpse_sides(sides: Sequence[int]) -> tuple[int, int]:
    """The sides (h, w) that an image has there: halved, or divided by more, until the longer is no more than 64."""
    part = -(-max(sides) // LARGEST)
    return max(1, sides[0] // part), max(1, sides[1] // part)


def _png(sheet: Tensor, height: int) -> bytes:
    """A sheet ``(c, h, w)`` of images of some height; small ones are enlarged, without smoothing."""
    array = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
    scale = max(1, 48 // height)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _row(images: Tensor) -> Tensor:
    """``(k, c, h, w)`` side by side with white gaps: ``(c, h + gap, k (w + gap))``."""
    padded = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
    return torch.cat(list(padded), 2)
