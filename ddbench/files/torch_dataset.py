"""A distilled set, and the real images that it is tested on, as datasets of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddbench.data.dataset import RealData


class DistilledDataset(Dataset[tuple[Any, Any]]):
    """The images of a distilled set with their labels, for PyTorch; ``classes`` and ``class_to_idx`` as torchvision."""

    def __init__(
        self, images: Tensor, labels: Tensor, classes: tuple[str, ...], transform: Callable[[Tensor], Any] | None = None
    ) -> None:
        """``images`` ``(n, c, h, w)``; ``labels`` ``(n, k)``."""
        certain = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
        self.images, self.labels = images, labels.argmax(1) if certain else labels.float()
        self.classes, self.transform = list(classes), transform
        self.class_to_idx = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """An image ``(c, h, w)`` through the transform, and its label: a class number, or ``(k,)``."""
        image, label = self.images[index], self.labels[index]
        shown = image if self.transform is None else self.transform(image)
        return shown, int(label) if label.ndim == 0 else label


class RealImages(Dataset[tuple[Any, int]]):
    """Real images of the size of a set; ``classes`` and ``class_to_idx`` are the set's."""

    def __init__(
        self, real: RealData, classes: tuple[str, ...], transform: Callable[[Tensor], Any] | None, *, prepared: bool
    ) -> None:
        """``prepared`` images are normalised (or whitened); others are pixels, where 0 is black and 1 white."""
        self.real, self.transform, self.prepared = real, transform, prepared
        self.classes = list(classes)
        self.class_to_idx = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image ``(c, h, w)`` float32 through the transform, and its class number."""
        at = torch.tensor([range(len(self))[index]])  # IndexError at the end, where iterating stops
        pixels = self.real[at].images if self.prepared else self.real.pixels[at].float() / 255
        return pixels[0] if self.transform is None else self.transform(pixels[0]), int(self.real.targets[at])
