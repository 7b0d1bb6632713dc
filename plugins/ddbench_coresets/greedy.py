"""Herding and k-center: one image after another, each chosen in view of those before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench import Published
from ddbench_coresets.features import ByFeatures


@dataclass(frozen=True)
class Herding(ByFeatures):
    """Images whose mean feature follows that of their class (Welling, ICML 2009; Rebuffi et al., CVPR 2017).

    With k images chosen, the next one is ``argmin_x |(k + 1) mu - sum_chosen phi - phi(x)|``, where mu is the mean of
    the class and phi the features of all ``experts`` side by side. Images of earlier stages count as
    chosen. DeepCore's release takes the argmax, and with it another method; here the minimum is taken.
    """

    name = "herding"
    paper = "Welling, ICML 2009"
    paper_url = "https://doi.org/10.1145/1553374.1553517"
    published = (Published("Herding", "hard"),)

    def pick(self, features: Tensor, taken: Tensor, count: int) -> Tensor:
        return herding(features, taken, count)


@dataclass(frozen=True)
class KCenter(ByFeatures):
    """Images that cover their class: each is the farthest from those before it (Sener & Savarese, ICLR 2018).

    The first is the nearest to the mean of the class, the next ``argmax_x min_chosen |phi(x) - phi|``: the greedy
    two-approximation of the k-center problem. Images of earlier stages count as chosen. The farthest images are
    outliers: published results are below those of random images at 10 images per class and more.
    """

    name = "k-center"
    paper = "Sener & Savarese, ICLR 2018"
    paper_url = "https://arxiv.org/abs/1708.00489"
    published = (Published("K-Center", "hard"), Published("K-Center(alt)", "hard"))

    def pick(self, features: Tensor, taken: Tensor, count: int) -> Tensor:
        return k_center(features, taken, count)


def herding(features: Tensor, taken: Tensor, count: int) -> Tensor:
    """``count`` rows of ``features`` ``(m, f)``, in the order in which they are chosen, after those in ``taken``."""
    mean, squares = features.mean(0), features.square().sum(1)
    total = features[taken].sum(0)
    free = _free(features, taken)
    chosen = torch.empty(count, dtype=torch.int64, device=features.device)
    for k in range(count):
        wanted = (len(taken) + k + 1) * mean - total
        gaps = squares - 2 * features @ wanted  # |wanted - phi|^2 but for what is the same for all
        best = gaps.masked_fill(~free, torch.inf).argmin()
        chosen[k], free[best] = best, False
        total += features[best]
    return chosen


def k_center(features: Tensor, taken: Tensor, count: int) -> Tensor:
    """As :func:`herding`, but each row is the farthest from its nearest one among those before."""
    free = _free(features, taken)
    chosen = torch.empty(count, dtype=torch.int64, device=features.device)
    gap = features.new_full((len(features),), torch.inf)
    for row in taken:
        gap = gap.minimum(_distances(features, features[row]))
    for k in range(count):
        if k == len(taken) == 0:
            best = _distances(features, features.mean(0)).argmin()
        else:
            best = gap.masked_fill(~free, -torch.inf).argmax()
        chosen[k], free[best] = best, False
        gap = gap.minimum(_distances(features, features[best]))
    return chosen


def _free(features: Tensor, taken: Tensor) -> Tensor:
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    free[taken] = False
    return free


def _distances(features: Tensor, center: Tensor) -> Tensor:
    return torch.cdist(features, center[None]).squeeze(1)
