"""Robustness to common corruptions, made from the test images while a student is measured.

Shapes: n test images, c channels, h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ddbench import RealData, UsageError, did_you_mean, stratified
from ddbench_metrics.basic import accuracy
from ddbench_metrics.kinds import KINDS, SEVERITIES, block_size, corrupt

if TYPE_CHECKING:
    from ddbench import Examinee


@dataclass(frozen=True)
class Corruptions:
    """Accuracy on corrupted test images (after Hendrycks & Dietterich, ICLR 2019; docs/metrics.md says how).

    ``corruptions.<kind>`` is the mean over severities, ``corruptions.mean`` that over kinds, and
    ``corruptions.relative`` its share of the accuracy on the same images as they are. The images of a test set are
    corrupted in the same way for every student and every distilled set.
    """

    name = "corruptions"
    costly = True
    severities: Annotated[tuple[int, ...], "severities, 1 to 5"] = (1, 3, 5)
    kinds: Annotated[tuple[str, ...], "corruptions"] = tuple(KINDS)
    limit: Annotated[
        int | None, Ge(1), "test images that are corrupted, in proportion to the classes; none for all"
    ] = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                hint = did_you_mean(kind, KINDS)
                raise UsageError(f"no corruption called {kind!r}{hint} (valid ones: {', '.join(KINDS)})")
        for severity in self.severities:
            if severity not in SEVERITIES:
                raise UsageError(f"severities of corruptions are 1 to 5, got {severity}")
        if not self.kinds or not self.severities:
            raise UsageError("name at least one of corruptions.kinds and one of corruptions.severities")

    def examine(self, student: Examinee) -> dict[str, float]:
        chosen = self._chosen(student.targets)
        data = student.test.subset(chosen)
        clean = accuracy(student.logits[chosen], student.targets[chosen])
        found = {kind: mean(self._accuracy(student, data, kind, s) for s in self.severities) for kind in self.kinds}
        overall = mean(found.values())
        return found | {"mean": overall, "relative": overall / clean if clean else 0.0}

    def _chosen(self, targets: Tensor) -> Tensor:
        if self.limit is None or self.limit >= len(targets):
            return torch.arange(len(targets))
        return stratified(targets, self.limit, 0)

    @torch.no_grad()
    def _accuracy(self, student: Examinee, data: RealData, kind: str, severity: int) -> float:
        right = 0
        for index, rows in enumerate(torch.arange(len(data)).split(block_size(data.shape))):
            images = data.preprocessing(corrupt(data.pixels[rows], kind, severity, index))
            logits = student.network.apply(student.vector, images, train=False)
            right += int((logits.argmax(1).cpu() == data.targets[rows]).sum())
        return right / len(data)
