"""A picture of a synthetic set: columns are classes, rows are images, stages are set apart by a gap."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from ddbench.data.dataset import Preprocessing
from ddbench.problem.synthetic import Curriculum

MAX_CLASSES, MAX_ROWS = 20, 10  # per stage: a picture, not an archive
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
    sheet = torch.cat(rows[:-1], 1)
    array = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
    scale = max(1, 48 // curriculum.sets[0].images.shape[2])  # small digits are enlarged, without smoothing
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _row(images: Tensor) -> Tensor:
    """``(k, c, h, w)`` side by side with white gaps: ``(c, h + gap, k (w + gap))``."""
    padded = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
    return torch.cat(list(padded), 2)
