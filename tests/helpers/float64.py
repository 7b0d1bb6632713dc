"""Computations in float64: the toy task in that precision, and how far two results are apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddbench import Curriculum, Examples, Problem, RealData, SyntheticSet
from ddbench.problem.decode import Decoder
from ddbench.testing import toy_task

TIGHT = 1e-9


def error(seen: Tensor, expected: Tensor) -> float:
    """The relative error of a tensor as a whole."""
    assert seen.shape == expected.shape
    return ((seen - expected).norm() / expected.norm()).item()


def close(seen: Tensor, expected: Tensor, bound: float = TIGHT) -> bool:
    """Whether a result is the expected one, which must not be zero."""
    assert expected.norm() > 0
    return error(seen, expected) < bound


class Double(RealData):
    """Real data in float64."""

    def __getitem__(self, index: Tensor) -> Examples:
        batch = super().__getitem__(index)
        return Examples(batch.images.double(), batch.labels.double())


def precise(source: Any, *, ipc: int = 2, frozen: int = 0, factor: int = 1, label_kind: str = "probability") -> Problem:
    """The toy task in float64 for a network, after a stage with ``frozen`` images per class.

    The labels of that stage are one-hot, or numbers that were learned where ``label_kind`` is ``real``.
    """
    task = toy_task(ipc=ipc)
    real = Double(task.real.pixels, task.real.targets, task.real.preprocessing, task.classes)
    starts = replace(task.starts, network=replace(task.network, source=source, dtype=torch.float64))
    done = Curriculum()
    if frozen:
        generator = torch.Generator().manual_seed(7)
        images = torch.randn(3 * frozen, *real.shape, generator=generator).double()
        labels = torch.eye(3).double().repeat_interleave(frozen, 0)
        kind = "hard"
        if label_kind == "real":
            labels, kind = torch.rand(3 * frozen, 3, generator=generator).double(), "learned"
        done = Curriculum((SyntheticSet(images, labels, label_kind=label_kind, label_type=kind),), ((0,),))
    return replace(task, real=real, starts=starts, frozen=done, decoder=Decoder(factor))


def four_cells(images: Tensor) -> Tensor:
    """What a decoder of factor 2 makes of images of 8x8 pixels, written out: (n, 4, c, 8, 8)."""
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    cells = torch.stack([images[:, :, y : y + 4, x : x + 4] for y, x in corners], 1)
    large = interpolate(cells.flatten(0, 1), scale_factor=2, mode="bilinear", align_corners=False)
    return large.unflatten(0, (len(images), 4))
