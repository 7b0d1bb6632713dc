"""From torchvision's objects to pixels and targets, or to the files that hold them: one reader per format."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench_datasets.common import Whole

DIGITS = tuple("0123456789")
STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
# The archives only number the signs; these are the names in common use.
SIGNS = (
    *(f"Speed limit ({limit}km/h)" for limit in (20, 30, 50, 60, 70, 80)),
    *("End of speed limit (80km/h)", "Speed limit (100km/h)", "Speed limit (120km/h)", "No passing"),
    *("No passing for vehicles over 3.5 metric tons", "Right-of-way at the next intersection", "Priority road"),
    *("Yield", "Stop", "No vehicles", "Vehicles over 3.5 metric tons prohibited", "No entry", "General caution"),
    *("Dangerous curve to the left", "Dangerous curve to the right", "Double curve", "Bumpy road", "Slippery road"),
    *("Road narrows on the right", "Road work", "Traffic signals", "Pedestrians", "Children crossing"),
    *("Bicycles crossing", "Beware of ice/snow", "Wild animals crossing", "End of all speed and passing limits"),
    *("Turn right ahead", "Turn left ahead", "Ahead only", "Go straight or right", "Go straight or left"),
    *("Keep right", "Keep left", "Roundabout mandatory", "End of no passing"),
    "End of no passing by vehicles over 3.5 metric tons",
)


@dataclass(frozen=True)
class Listing:
    """Image files with their class numbers, before any is decoded; no ``test`` where the authors made no such part."""

    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


Lister = Callable[[ModuleType, str], Listing]  # from torchvision.datasets and the data folder


def idx(kind: str) -> Callable[[ModuleType, str], Whole]:
    """A reader of MNIST's format. The classes of MNIST are its digits, without torchvision's spelling of them."""

    def read(datasets: ModuleType, folder: str) -> Whole:
        train, test = (getattr(datasets, kind)(folder, train=part, download=True) for part in (True, False))
        names = tuple(name.partition(" - ")[0] for name in train.classes)
        return Whole(names, train.data[:, None], train.targets.long(), test.data[:, None], test.targets.long())

    return read


def cifar(kind: str) -> Callable[[ModuleType, str], Whole]:
    """A reader of CIFAR's pickles, which torchvision opens only when their checksums are right."""

    def read(datasets: ModuleType, folder: str) -> Whole:
        train, test = (getattr(datasets, kind)(folder, train=part, download=True) for part in (True, False))
        parts = [(_channels_first(part.data), torch.tensor(part.targets)) for part in (train, test)]
        return Whole(tuple(train.classes), *parts[0], *parts[1])

    return read


def svhn(datasets: ModuleType, folder: str) -> Whole:
    """The cropped digits; not the 531,131 ``extra`` ones."""
    parts = [datasets.SVHN(folder, split=part, download=True) for part in ("train", "test")]
    read = [(torch.from_numpy(part.data.copy()), torch.from_numpy(part.labels)) for part in parts]
    return Whole(DIGITS, *read[0], *read[1])


def stl10(datasets: ModuleType, folder: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The labelled images. Slow: torchvision checks all of STL-10, most of which has no labels."""
    train, test = (datasets.STL10(folder, split=part, download=True) for part in ("train", "test"))
    targets = [int(label) for part in (train, test) for label in part.labels]
    about = {"classes": STL_CLASSES, "train": len(train.labels), "targets": targets}
    return np.concatenate([train.data, test.data]), about


def imagenette(datasets: ModuleType, folder: str) -> Listing:
    """Files of the 160 px version, each class by the first of its WordNet names."""
    # the loader gives what __getitem__ returns as the image: here the path
    train, val = (datasets.Imagenette(folder, part, "160px", download=True, loader=str) for part in ("train", "val"))
    listed = [[part[i] for i in range(len(part))] for part in (train, val)]
    return Listing(tuple(names[0] for names in train.classes), *listed)


def eurosat(datasets: ModuleType, folder: str) -> Listing:
    """Files of the RGB version, which has one part."""
    part = datasets.EuroSAT(folder, download=True)
    return Listing(tuple(part.classes), part.samples, [])


def gtsrb(datasets: ModuleType, folder: str) -> Listing:
    """Files of both parts; the archives' numbers of the signs are their order here."""
    for part in ("train", "test"):
        datasets.GTSRB(folder, split=part, download=True)
    base = Path(folder) / "gtsrb"
    train = [(str(path), int(path.parent.name)) for path in sorted((base / "GTSRB" / "Training").glob("*/*.ppm"))]
    with (base / "GT-final_test.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter=";", skipinitialspace=True))
    test = [(str(base / "GTSRB" / "Final_Test" / "Images" / row["Filename"]), int(row["ClassId"])) for row in rows]
    return Listing(SIGNS, train, test)


def _channels_first(data: np.ndarray) -> Tensor:
    """NumPy (n, h, w, c) to (n, c, h, w)."""
    return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
