"""Images and labels of a foreign set, compared with each other and with what is known of it beforehand.

Shapes: n images, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddbench.errors import DataError, UsageError
from ddbench.problem.synthetic import OUT_OF_RANGE, SyntheticSet

MOST_CLASSES = 100_000  # of hard labels whose dataset is not known: a row of that length is made for each image


@dataclass(frozen=True)
class Known:
    """What is known of a set beforehand: k, what soft labels mean, and how a dataset calls its classes."""

    classes: int | None
    labels: str
    names: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()

    def set(
        self, path: Path, images: Any, labels: Any, lr: float | None, soft: str = "logit"
    ) -> tuple[SyntheticSet, list[str]]:
        """Images and labels that fit each other, as a set; ``soft`` is what rows are that are no probabilities."""
        notes: list[str] = []
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel() or images.is_complex():
            shape = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise DataError(f"{path} should hold images (n, c, h, w), and holds {shape}; give images and their labels")
        if images.dtype != torch.float32:
            notes.append(
                f"Its pixels are {str(images.dtype).removeprefix('torch.')} and were made float32"
                f"{', divided by 255' if images.dtype == torch.uint8 else ''}."
            )
            images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        images = images.contiguous()
        if not torch.isfinite(images).all():
            broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
            raise DataError(
                f"{path} has pixels that are not finite in {broken} of {len(images)} images; "
                "get it again, or take an earlier checkpoint"
            )
        if (largest := float(images.abs().max())) > OUT_OF_RANGE:
            raise DataError(
                f"{path} has pixels of {largest:.3g}, where input of networks is of the order of 1; its "
                "distillation diverged, or its scale is lost: get another checkpoint"
            )
        rows, kind, word = self._rows(path, labels, len(images), soft)
        notes.append(word)
        counts = torch.bincount(rows.argmax(1), minlength=rows.shape[1])
        least, most = int(counts.min()), int(counts.max())
        said = f"{least} per class" if least == most else f"{least} to {most} per class, which is not balanced"
        notes.append(f"It holds {len(images)} images of {tuple(images.shape[1:])} in {rows.shape[1]} classes, {said}.")
        types = {"hard": "hard", "probability": "soft", "logit": "learned", "real": "real"}
        return SyntheticSet(images, rows, lr, "probability" if kind == "hard" else kind, types[kind]), notes

    def _rows(self, path: Path, labels: Any, images: int, soft: str) -> tuple[Tensor, str, str]:
        """Labels (n, k), what they are (hard, probability, logit, real), and a sentence."""
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or labels.is_complex():
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise DataError(f"the labels of {path} should be (n,) or (n, k) numbers, and are {shape}")
        if len(labels) != images:
            raise DataError(
                f"{path} has {images} images, but {len(labels)} labels, so they are not a pair; get both files of one "
                "checkpoint"
            )
        if not torch.isfinite(labels.double()).all():
            raise DataError(
                f"the labels of {path} are not finite (where no teacher was right, some methods leave NaN); take "
                "another checkpoint, or replace those rows"
            )
        if labels.ndim == 1 or labels.shape[1] == 1:
            return self._hard(path, labels.flatten())
        if self.classes not in (None, labels.shape[1]):
            raise DataError(f"{path} has labels over {labels.shape[1]} classes, but the dataset has {self.classes}")
        rows = labels.float()
        spread = bool(((rows.sum(1) - 1).abs() < 5e-3).all() and (rows >= 0).all())
        if self.labels == "probability" and not spread:
            raise DataError(
                f"rows of labels of {path} sum to {rows.sum(1).min():.3g}, not 1; use --labels logit or real"
            )
        if self.labels == "hard" or (self.labels == "auto" and spread and bool((rows.max(1).values == 1).all())):
            hard = one_hot(rows.argmax(1), rows.shape[1]).float()
            said = "one-hot rows" if spread and self.labels == "auto" else "rows of which the largest entry counts"
            return hard, "hard", f"The labels are {said} (hard labels)."
        kind = self.labels if self.labels != "auto" else "probability" if spread else soft
        means = {
            "probability": "probabilities",
            "logit": "logits, which pass through a softmax",
            "real": "real values, which students learn by squared error",
        }[kind]
        why = "as stated" if self.labels != "auto" else "by their rows' sums" if spread else "assumed; --labels tells"
        return rows.contiguous(), kind, f"The labels are {means} ({why})."

    def _hard(self, path: Path, labels: Tensor) -> tuple[Tensor, str, str]:
        numbers = labels.double().round().long()
        if not torch.equal(numbers.double(), labels.double()):
            raise DataError(
                f"the labels of {path} are one number per image, but no whole numbers ({labels[0]:.4g}, ...); class "
                "numbers or rows over all classes are needed"
            )
        if self.labels in ("logit", "real"):
            raise UsageError(f"--labels {self.labels} needs rows (n, k), but {path} has one class number per image")
        k = self.classes or min(int(numbers.max()) + 1, MOST_CLASSES)
        if int(numbers.min()) < 0 or int(numbers.max()) >= k:
            raise DataError(
                f"the labels of {path} run from {int(numbers.min())} to {int(numbers.max())}, "
                f"but there are {k} classes, 0 to {k - 1}"
            )
        return one_hot(numbers, k).float(), "hard", "The labels are class numbers (hard labels)."


def columns(rows: Tensor, places: list[int]) -> Tensor:
    """Rows of labels (n, k) whose column i belongs to class ``places[i]``, in the order of the classes."""
    return rows[:, torch.tensor(places).argsort()].contiguous()
