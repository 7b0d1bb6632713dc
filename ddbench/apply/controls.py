"""``ddbench eval --controls``: how much of an accuracy is due to images, to labels, to augmentation.

The matrix {distilled, random, k-center, herding} x {hard, soft labels} x {augmentation on, off}: same network, same
optimiser steps, and in every cell the student lr that does best on validation data.

The scores are after DD-Ranking (Li et al., arXiv 2505.13300; the formulas are those of its released code, version 0.2).
All accuracies in them are fractions. The published code puts percent points into the exponential, which leaves the
interval [0, 1] that the paper states; these functions do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddbench.base.cache import write_json
from ddbench.errors import UsageError
from ddbench.files.asked import EvalOptions
from ddbench.files.pixelspace import applied
from ddbench.files.target import Opened, Planned, adopted, graded, planned
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation
from ddbench.grade.protocol import altered
from ddbench.plugins import needs_of
from ddbench.problem.decode import IDENTITY
from ddbench.problem.labels import mean_labels
from ddbench.problem.synthetic import Curriculum, SyntheticSet, targets
from ddbench.run.baseline import baseline
from ddbench.run.defaults import BASELINE, CORESETS, ONE_STAGE
from ddbench.run.prepare import prepared
from ddbench.run.record import EvaluationRecord
from ddbench.run.references import whole_set
from ddbench.run.row import Cells, deviation
from ddbench.run.run import Run, Settings, first_problem
from ddbench.run.spec import RunSpec, from_record

PLAIN = {"augment": "", "mixing": "none"}
FORMULAS = {
    "IOR": "accuracy(distilled) - accuracy(random), same kind of labels",
    "HLR": "accuracy(all real data) - accuracy(distilled, hard labels)",
    "LRS": "(e^a - e^-1) / (e - e^-1), a = 0.5 IOR - 0.5 HLR",
    "ARS": "(e^b - e^-1) / (e - e^-1), b = 0.5 (IOR with augmentation) + 0.5 (IOR without)",
}
SOURCE = "DD-Ranking (Li et al., arXiv 2505.13300), with accuracies as fractions"
WEIGHT = 0.5  # of both scores, as published


@dataclass(frozen=True, eq=False)
class Matrix:
    """The cells as rows, in order, and the scores that follow from them."""

    rows: list[Cells]
    scores: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Both as JSON, with what the scores mean."""
        return {"matrix": self.rows, "scores": self.scores, "formulas": FORMULAS, "source": SOURCE}


@dataclass(frozen=True, eq=False)
class _Controls:
    """The set in question, its evaluation, and the task that its coresets are chosen for."""

    folder: Path
    plan: Planned
    spec: RunSpec
    settings: Settings

    @property
    def evaluation(self) -> Evaluation:
        return self.plan.evaluation

    def cells(self) -> Iterator[tuple[str, str, bool, EvaluationRecord]]:
        """(source, labels, augmentation, record) of all sixteen."""
        for source in ("distilled", *CORESETS):
            for labels in ("hard", "soft"):
                for augmented in (True, False):
                    yield source, labels, augmented, self._record(source, labels, augmented)

    def _record(self, source: str, labels: str, augmented: bool) -> EvaluationRecord:
        if source == "distilled":
            made, folder, own = self._relabelled(labels), self._folder, labels == self.own_labels
        else:
            made, folder, own = *self._coreset(source, labels), True
        asked = replace(self.evaluation, distilled=made, tune=self.evaluation.tune if source == "distilled" else False)
        if not augmented:
            protocol = altered(asked.protocol, PLAIN)
            teaching = self._teaching(protocol, made).on(asked.dataset.augment)
            asked = replace(asked, protocol=protocol, distilled=replace(made, teaching=teaching))
        if not (own and augmented):
            asked, folder = replace(asked, tune=bool(asked.protocol.lrs)), self._folder
        elif source == "distilled":
            folder = self.folder / "evaluations"
        return graded(replace(self.plan, evaluation=asked), folder)

    @property
    def _folder(self) -> Path:
        return self.folder / "controls"

    def _teaching(self, protocol: Any, made: Distilled) -> Any:
        images = sum(len(s) for s in made.curriculum.sets)
        return protocol.evaluation(images, len(made.curriculum.phases))

    @property
    def own_labels(self) -> str:
        """Whether the set's own labels count as hard or as soft."""
        return "hard" if all(s.label_type == "hard" for s in self.evaluation.distilled.curriculum.sets) else "soft"

    def _coreset(self, matcher: str, labels: str) -> tuple[Distilled, Path]:
        """Real images chosen under the same rules, as an ordinary run, with the folder of its evaluations."""
        kind = "hard" if labels == "hard" else "teacher"
        run = Run(baseline(self.spec, kind, IDENTITY, matcher), self.evaluation.dataset, self.settings)
        run.execute()
        return Distilled.load(run.folder / "distilled.safetensors"), run.folder / "evaluations"

    def _relabelled(self, labels: str) -> Distilled:
        """The set with labels of a kind: its own where they are, otherwise its classes, or what experts say."""
        distilled = self.evaluation.distilled
        if labels == self.own_labels:
            return distilled
        change = _hardened if labels == "hard" else self._softened
        sets = tuple(change(s) for s in distilled.curriculum.sets)
        return replace(distilled, curriculum=Curriculum(sets, distilled.curriculum.phases))

    def _softened(self, s: SyntheticSet) -> SyntheticSet:
        """The mean prediction of the experts that label random images, for the images as stored or decoded."""
        spec = baseline(self.spec, "teacher")
        problem = first_problem(spec, self.evaluation.dataset)
        wanted = needs_of(spec.matcher, problem)
        ready = prepared(problem, wanted)
        images = self._as_real(s.decoder(s.images), ready.real.preprocessing)
        shown = mean_labels(ready, images, wanted.experts, max(wanted.snapshots))
        return replace(
            s, labels=shown.view(len(s), s.decoder.copies, -1).mean(1), label_type="teacher", label_kind="probability"
        )

    def _as_real(self, images: Tensor, real: Any) -> Tensor:
        """Images of the set's own input space in the real data's, which the experts know."""
        own = self.evaluation.distilled.preprocessing
        return images if own.digest == real.digest else applied(own.invert(images), real)


def _hardened(s: SyntheticSet) -> SyntheticSet:
    """Each image labelled with the class that its labels put first."""
    classes = targets(s.labels, s.label_kind).argmax(1)
    labels = one_hot(classes, s.labels.shape[1]).to(s.labels.dtype)
    return replace(s, labels=labels, label_type="hard", label_kind="probability")


def control_matrix(source: Opened, options: EvalOptions, settings: Settings) -> Matrix:
    """Evaluate all cells, and the scores that follow. Every student is stored, so an interrupted call goes on."""
    plan = planned(source.distilled, options)
    protocol = plan.evaluation.protocol
    if protocol.online:
        raise UsageError(
            f"under protocol {protocol.name!r} a teacher labels every batch, so there are no hard labels to compare "
            "with; add --protocol default"
        )
    torch.set_num_threads(plan.threads)
    folder = source.folder or adopted(source, settings.out)
    controls = _Controls(folder, plan, _spec(plan), replace(settings, students=plan.evaluation.students))
    rows, found = [], {}
    for name, labels, augmented, record in controls.cells():
        scores = record.scores
        found[name, labels, augmented] = mean(scores)
        rows.append(
            {
                "images": name,
                "labels": labels,
                "augmentation": "on" if augmented else "off",
                "accuracy_mean": mean(scores),
                "accuracy_std": deviation(scores),
                "n": len(scores),
                "student_lr": record.student_lr or "own",
                "label_bytes": record.label_bytes,
                "selection": record.selection,
                "protocol": record.protocol,
            }
        )
    made = Matrix(rows, _scores(found, controls, plan))
    write_json(folder / "controls.json", made.record())
    return made


def _scores(found: dict[tuple[str, str, bool], float], controls: _Controls, plan: Planned) -> dict[str, float]:
    own = controls.own_labels
    full = mean(whole_set(controls.spec, plan.evaluation.dataset, min(plan.evaluation.students, 3))["accuracies"])
    ior = improvement_over_random(found["distilled", own, True], found[BASELINE, own, True])
    hlr = hard_label_recovery(full, found["distilled", "hard", True])
    pairs = [found[name, own, augmented] for augmented in (True, False) for name in ("distilled", BASELINE)]
    ars = augmentation_robust_score(*pairs)
    return {"IOR": ior, "HLR": hlr, "LRS": label_robust_score(ior, hlr), "ARS": ars, "all real data": full}


def _spec(plan: Planned) -> RunSpec:
    """The task of the set, with random images in place of its method, for the network and rules of the evaluation."""
    asked = plan.evaluation
    record = asked.distilled.about["spec"]
    plain = {"matcher": {"name": BASELINE, "options": {}}, "scheduler": {"name": ONE_STAGE, "options": {}}}
    spec = from_record(record | plain | {"device": asked.device, "seed": plan.seed})
    return replace(spec, network=asked.distilled.network, protocol=asked.protocol)


def improvement_over_random(distilled: float, random: float) -> float:
    """IOR: accuracy on the distilled set less that on random images with the same kind of labels, in [-1, 1]."""
    return distilled - random


def hard_label_recovery(full: float, distilled_hard: float) -> float:
    """HLR: accuracy of training on all real data less that on the distilled images with hard labels, in [-1, 1]."""
    return full - distilled_hard


def squashed(value: float) -> float:
    """(e^v - e^-1) / (e - e^-1): maps [-1, 1] onto [0, 1], rising."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(ior: float, hlr: float, weight: float = WEIGHT) -> float:
    """LRS: alpha = w IOR - (1 - w) HLR, squashed. 1 is best; 0.5 IOR and HLR of zero give (1 - e^-1) / (e - e^-1)."""
    return squashed(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(
    distilled: float, random: float, distilled_plain: float, random_plain: float, weight: float = WEIGHT
) -> float:
    """ARS: beta = g (improvement with augmentation) + (1 - g) (improvement without it, ``plain``), squashed."""
    return squashed(weight * (distilled - random) + (1 - weight) * (distilled_plain - random_plain))
