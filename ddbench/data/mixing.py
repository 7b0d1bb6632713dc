"""CutMix and MixUp: each image of a batch mixed with another one's, drawn apart from being applied.

CutMix (Yun et al., ICCV 2019) copies a box of the partner's pixels, MixUp (Zhang et al., ICLR 2018) blends
all of them. Labels follow: share y + (1 - share) y[partner], with the share of its own pixels that an image
keeps. Cross entropy is linear in the label, so this is the loss that the publications add up from two,
share CE(z, y) + (1 - share) CE(z, y[partner]), for soft labels too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Beta

from ddbench.errors import UsageError

MixKind = Literal["none", "cutmix", "mixup"]


@dataclass(frozen=True, eq=False)
class Mix:
    """One drawn mixture of a batch of n: who is mixed with whom, and how; it can be applied again and again."""

    kind: MixKind
    share: float  # of an image's own pixels, before a box is clipped
    partner: Tensor  # (n,) a permutation
    centre: tuple[float, float]  # of the box, in heights and widths from the top left; CutMix alone uses it

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images ``(n, c, h, w)`` and label rows ``(n, k)``, differentiably."""
        if self.kind == "none":
            return images, labels
        partner = self.partner.to(images.device, non_blocking=True)
        if self.kind == "mixup":
            mixed, share = self.share * images + (1 - self.share) * images[partner], self.share
        else:
            mixed, share = self._paste(images, images[partner])
        return mixed, share * labels + (1 - share) * labels[partner]

    def _paste(self, images: Tensor, others: Tensor) -> tuple[Tensor, float]:
        """Images with a box of ``others``, and the share that is left: by the box's area once it is clipped."""
        h, w = images.shape[2:]
        (top, bottom), (left, right) = (self._span(size, at) for size, at in zip((h, w), self.centre, strict=True))
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (h * w)

    def _span(self, size: int, centre: float) -> tuple[int, int]:
        """The box along one side: as in the published code, an even number of pixels, clipped to the image."""
        middle, half = int(size * centre), int(size * math.sqrt(1 - self.share)) // 2
        return max(0, middle - half), min(size, middle + half)


NO_MIX = Mix("none", 1.0, torch.empty(0, dtype=torch.long), (0.0, 0.0))


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed: each with ``probability``, its share drawn from Beta(alpha, alpha).

    The defaults are those of IDC on 32x32 images (Kim et al., ICML 2022). ``none`` draws no number.
    """

    kind: MixKind = "none"
    probability: float = 0.5
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(MixKind):
            raise UsageError(f"unknown mixing {self.kind!r}; valid ones: {', '.join(get_args(MixKind))}")

    def draw(self, count: int) -> Mix:
        """Draw whether and how a batch of ``count`` images is mixed, from torch's CPU generator."""
        if self.kind == "none" or float(torch.rand(())) >= self.probability:
            return NO_MIX
        share = float(Beta(self.alpha, self.alpha).sample())
        partner = torch.randperm(count)
        down, right = torch.rand(2).tolist()
        return Mix(self.kind, share, partner, (down, right))
