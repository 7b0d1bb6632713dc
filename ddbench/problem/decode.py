"""Decoders: how many training images a stored image becomes, for any matcher of pixels.

Multi-formation (Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022,
section 4): a stored image is a grid of ``factor`` x ``factor`` small ones, each enlarged to full size before
a student sees it. What is stored, and counted as images per class and as bytes, stays the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import interpolate, pad


@dataclass(frozen=True)
class Decoder:
    """Stored images to those that are trained on. A factor of 1 changes nothing.

    Sizes that ``factor`` does not divide are padded with zeros (the mean colour) at the right and the bottom, as
    the published code pads.
    """

    factor: Annotated[int, Ge(1), Le(8), "small images along each side of a stored one"] = 1

    @property
    def copies(self) -> int:
        """Images that one stored image becomes."""
        return self.factor**2

    def __call__(self, images: Tensor) -> Tensor:
        """Stored ``(n, c, h, w)`` to ``(n copies, c, h, w)``: those of image i are rows i copies to (i + 1) copies - 1.

        Differentiable: every cell is enlarged bilinearly.
        """
        if self.factor == 1:
            return images
        n, c, h, w = images.shape
        f, (ph, pw) = self.factor, self._cell(h, w)
        whole = pad(images, (0, f * pw - w, 0, f * ph - h))
        cells = whole.view(n, c, f, ph, f, pw).permute(0, 2, 4, 1, 3, 5).reshape(n * f * f, c, ph, pw)
        return interpolate(cells, size=(h, w), mode="bilinear", align_corners=False)

    def labels(self, labels: Tensor) -> Tensor:
        """``(n, k)`` to ``(n copies, k)``, in the order of the decoded images."""
        return labels if self.factor == 1 else labels.repeat_interleave(self.copies, 0)

    def pack(self, images: Tensor) -> Tensor:
        """``(n copies, c, h, w)`` to stored ``(n, c, h, w)``: each cell is one image, shrunk by averaging."""
        if self.factor == 1:
            return images
        f, (c, h, w) = self.factor, images.shape[1:]
        ph, pw = self._cell(h, w)
        cells = interpolate(images, size=(ph, pw), mode="area").view(-1, f, f, c, ph, pw)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, f * ph, f * pw)[:, :, :h, :w].contiguous()

    def _cell(self, h: int, w: int) -> tuple[int, int]:
        return math.ceil(h / self.factor), math.ceil(w / self.factor)


IDENTITY = Decoder()
