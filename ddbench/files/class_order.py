"""Whether a foreign set orders its classes otherwise than the dataset does: tensors do not say, predictions do."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from ddbench.run.record import EvaluationRecord

NAME = "reordered"
SUSPICIOUS = 0.1  # accuracy gained by renaming classes; for a fair set of ten classes it is below 0.01


@dataclass(frozen=True)
class Reordered:
    """The accuracy of a student under the renaming of its classes that fits best (the assignment problem)."""

    name = NAME  # no field: it has no options

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        from scipy.optimize import linear_sum_assignment

        k = logits.shape[1]
        pairs = torch.bincount(targets * k + logits.argmax(1), minlength=k * k).view(k, k).numpy()
        rows, columns = linear_sum_assignment(pairs, maximize=True)
        return float(pairs[rows, columns].sum() / len(targets))


def misordered(evaluation: EvaluationRecord) -> str | None:
    """A warning, where an evaluation's students do far better with their classes renamed."""
    known = [student for student in evaluation.students if NAME in student.metrics]
    if not known:
        return None
    found, best = mean(s.accuracy for s in known), mean(s.metrics[NAME] for s in known)
    if best - found <= SUSPICIOUS:
        return None
    return (
        f"the set's classes seem to stand in another order than the dataset's: students reach {100 * found:.1f} %, but "
        f"{100 * best:.1f} % with the classes renamed; import it again in its own order, -o dataset.classes=A,B,..."
    )
