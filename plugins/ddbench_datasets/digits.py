"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddbench import Dataset, stratified
from ddbench_datasets.common import NO_FLIP, SEED, ZCA, Limit, Validation, limited

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Digits:
    """1,797 grey 8x8 images of ten digits from scikit-learn; 1,438 to train on, 359 to test."""

    name = "digits"
    validation: Validation = 0.1
    zca: ZCA = False
    limit: Limit = None

    def load(self) -> Dataset:
        pixels, targets = _read()
        test = torch.zeros(len(targets), dtype=torch.bool)
        test[stratified(targets, round(len(targets) * TEST_SHARE), SEED)] = True
        train_pixels, train_targets = pixels[~test], targets[~test]
        used = limited(train_targets, self.limit)
        return Dataset.split(
            self.name,
            tuple("0123456789"),
            (train_pixels[used], train_targets[used]),
            (pixels[test], targets[test]),
            validation=self.validation,
            seed=SEED,
            zca=self.zca,
            augment=NO_FLIP,
            facts={
                "source": "Optical Recognition of Handwritten Digits, UCI (doi.org/10.24432/C50P49), "
                "as in sklearn.datasets.load_digits",
                "licence": "CC BY 4.0",
            },
        )


def _read() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 1, 8, 8) uint8 and targets (1797,); scikit-learn's values are 0..16."""
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(pixels), torch.from_numpy(targets).long()
