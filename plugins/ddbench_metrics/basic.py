"""Metrics of what a student predicts on the test set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor


def accuracy(logits: Tensor, targets: Tensor) -> float:
    return float((logits.argmax(1) == targets).double().mean())


@dataclass(frozen=True)
class Accuracy:
    """The share of images whose most likely class is the right one."""

    name = "accuracy"
    bounds = (0.0, 1.0)

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        return accuracy(logits, targets)


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error (Guo et al., ICML 2017): mean gap of confidence and accuracy over bins."""

    name = "ece"
    bounds = (0.0, 1.0)
    bins: Annotated[int, Ge(1), "equal bins of confidence"] = 15

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        confidence, predicted = logits.double().softmax(1).max(1)
        gap = (predicted == targets).double() - confidence
        bin_of = (confidence * self.bins).ceil().long().clamp(1, self.bins)  # bins are (low, high]
        sums = [float(gap[bin_of == b].sum()) for b in range(1, self.bins + 1)]
        return sum(abs(s) for s in sums) / len(targets)
