"""Datasets: ``digits`` and ``toy`` need no download, ``images`` and ``hf`` read what others have, the rest download.

torchvision, scikit-learn and Hugging Face's datasets are imported only when the dataset that needs them is loaded.
"""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_datasets.digits import Digits
from ddbench_datasets.hf import HF
from ddbench_datasets.imagenet import ImageNet
from ddbench_datasets.images import Images
from ddbench_datasets.tinyimagenet import TinyImageNet
from ddbench_datasets.toy import Toy
from ddbench_datasets.vision import (
    CIFAR10,
    CIFAR100,
    GTSRB,
    KMNIST,
    MNIST,
    STL10,
    SVHN,
    EuroSAT,
    FashionMNIST,
    Imagenette,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "GTSRB",
    "HF",
    "KMNIST",
    "MNIST",
    "STL10",
    "SVHN",
    "Digits",
    "EuroSAT",
    "FashionMNIST",
    "ImageNet",
    "Imagenette",
    "Images",
    "TinyImageNet",
    "Toy",
]
GIVEN = (Digits, Toy, Images, TinyImageNet, ImageNet, HF)
TORCHVISION = (MNIST, FashionMNIST, KMNIST, SVHN, CIFAR10, CIFAR100, STL10, Imagenette, EuroSAT, GTSRB)


@hookimpl
def register_datasets(register) -> None:
    for source in (*GIVEN, *TORCHVISION):
        register(source, recipes=Path(__file__).with_name("recipes.toml"))
