"""A distilled set as a dataset of PyTorch, to train one's own model on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


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
