"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ddbench import Dataset
from ddbench_datasets.common import NO_FLIP, TEST_SHARE, Choices, Whole, assemble


@dataclass(frozen=True)
class Digits(Choices):
    """1,797 grey 8x8 images of ten digits from scikit-learn; 1,438 to train on, 359 to test."""

    name = "digits"
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://doi.org/10.24432/C50P49",
        "licence": "CC BY 4.0",
        "licence_url": "https://creativecommons.org/licenses/by/4.0/",
        "images": "1,797 of 8x8 pixels, grey, 10 classes; a fifth of them, stratified and fixed, is the test part",
    }

    def load(self) -> Dataset:
        pixels, targets = _read()
        return assemble(
            self,
            self.name,
            Whole.divided(tuple("0123456789"), pixels, targets, TEST_SHARE),
            augment=NO_FLIP,
            facts={
                "source": "Optical Recognition of Handwritten Digits, UCI (doi.org/10.24432/C50P49), "
                "as in sklearn.datasets.load_digits",
                "licence": self.about["licence"],
            },
        )

    def missing(self) -> str | None:
        return None


def _read() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 1, 8, 8) uint8 and targets (1797,); scikit-learn's values are 0..16."""
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(pixels), torch.from_numpy(targets).long()
