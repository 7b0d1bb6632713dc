"""Datasets: ``digits`` and ``toy`` need no download, ``images`` reads any folder or zip, ``cifar10`` downloads.

torchvision and scikit-learn are imported only when the dataset that needs them is loaded.
"""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_datasets.cifar10 import CIFAR10
from ddbench_datasets.digits import Digits
from ddbench_datasets.images import Images
from ddbench_datasets.toy import Toy

__all__ = ["CIFAR10", "Digits", "Images", "Toy"]


@hookimpl
def register_datasets(register) -> None:
    for source in (Digits, Toy, Images, CIFAR10):
        register(source, recipes=Path(__file__).with_name("recipes.toml"))
