"""CIFAR-10 from its authors' archive, by torchvision, which checks the checksums before it reads a file."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import torch

from ddbench import DataError, Dataset, Preprocessing, cache
from ddbench_datasets.common import FLIP, SEED, ZCA, Limit, Validation, limited

# The constants of DC, DSA, DM, MTT, TESLA and PDD. STD is the mean of the deviations within single images,
# smaller than the deviation of all pixels (.247, .243, .262) that Preprocessing.fit would give.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 (Krizhevsky 2009), downloaded on first use: 50,000 and 10,000 colour images, 32x32, 10 classes."""

    name = "cifar10"
    validation: Validation = 0.1
    zca: ZCA = False
    limit: Limit = None

    def load(self) -> Dataset:
        train, test = _read()
        targets = torch.tensor(train.targets)
        used = limited(targets, self.limit)
        return Dataset.split(
            self.name,
            tuple(train.classes),
            (_pixels(train.data[used.numpy()]), targets[used]),
            (_pixels(test.data), torch.tensor(test.targets)),
            validation=self.validation,
            seed=SEED,
            zca=self.zca,
            preprocessing=None if self.zca else Preprocessing(torch.tensor(MEAN), torch.tensor(STD)),
            augment=FLIP,
            facts={
                "source": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "licence": "none stated by the authors",
            },
        )


def _pixels(data: Any) -> torch.Tensor:
    """NumPy (n, h, w, c) to (n, c, h, w)."""
    return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()


def _read() -> list[Any]:
    """torchvision's train and test objects, or a DataError with what mends it."""
    folder = cache.data_home()
    try:
        from torchvision import datasets

        # torchvision's download is not safe against a second process; and stdout belongs to the caller
        with cache.lock(cache.home() / "datasets" / "cifar10.lock"), contextlib.redirect_stdout(sys.stderr):
            return [datasets.CIFAR10(str(folder), train=part, download=True) for part in (True, False)]
    except (ImportError, OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"CIFAR-10 is not in {folder} and torchvision could not get it ({reason}); put the file "
            "cifar-10-python.tar.gz in that folder, or use `--dataset images -o dataset.root=FOLDER_OR_ZIP` "
            "with your own copy"
        ) from error
