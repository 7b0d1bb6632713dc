"""``ddbench eval --controls``: how much of an accuracy is due to images, to labels, to augmentation.

The matrix {distilled, random, k-center, herding, matched} x {hard, soft, online labels} x {augmentation on, off}: same
network, same optimiser steps, and in every cell the student lr that does best on validation data. ``soft`` labels are
fixed, ``online`` ones are those of a teacher for every augmented batch. ``matched`` are real images that are as hard as
those of the set (``difficulty``).

The scores are after DD-Ranking (Li et al., arXiv 2505.13300; the formulas are those of its released code, version 0.2).
All accuracies in them are fractions. The published code puts percent points into the exponential, which leaves the
interval [0, 1] that the paper states; these functions do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddbench.apply.difficulty import difficulty, matched
from ddbench.base.cache import write_json
from ddbench.data.dataset import Examples, Preprocessing
from ddbench.errors import UsageError
from ddbench.files.asked import EvalOptions
from ddbench.files.pixelspace import applied
from ddbench.files.target import Opened, Planned, adopted, graded, planned
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation
from ddbench.grade.protocol import altered
from ddbench.plugins import needs_of, registry, takes_steps
from ddbench.problem.decode import IDENTITY
from ddbench.problem.labels import mean_labels
from ddbench.problem.problem import Needs, Problem
from ddbench.problem.synthetic import Curriculum, SyntheticSet, Teacher, targets
from ddbench.run.baseline import baseline
from ddbench.run.defaults import BASELINE, CORESETS, ONE_STAGE
from ddbench.run.prepare import prepared
from ddbench.run.record import EvaluationRecord
from ddbench.run.references import whole_set
from ddbench.run.row import Cells, deviation
from ddbench.run.run import Run, Settings, first_problem
from ddbench.run.spec import RunSpec, from_record

LABELS = ("hard", "soft", "online")
MATCHED = "matched"
USUAL = (*CORESETS, MATCHED)
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
    coresets: Sequence[str]

    @property
    def evaluation(self) -> Evaluation:
        return self.plan.evaluation

    @cached_property
    def distilled(self) -> Distilled:
        return self.evaluation.distilled.on(self.evaluation.device)

    def cells(self) -> Iterator[tuple[str, str, bool, EvaluationRecord]]:
        """(source, labels, augmentation, record) of all."""
        for source in ("distilled", *self.coresets):
            for labels in LABELS:
                for augmented in (True, False):
                    yield source, labels, augmented, self._record(source, labels, augmented)

    def _record(self, source: str, labels: str, augmented: bool) -> EvaluationRecord:
        made, folder, own = self._set(source, labels)
        rules = ({} if augmented else PLAIN) | ({"online": True} if labels == "online" else {})
        asked = replace(self.evaluation, distilled=made, tune=self.evaluation.tune if source == "distilled" else False)
        if rules:
            protocol = altered(asked.protocol, rules)
            teaching = self._teaching(protocol, made).on(asked.dataset.augment)
            asked = replace(asked, protocol=protocol, distilled=replace(made, teaching=teaching))
        if rules or not own:
            asked = replace(asked, tune=bool(asked.protocol.lrs))
        return graded(
            replace(self.plan, evaluation=asked), folder / ("controls" if rules or not own else "evaluations")
        )

    def _set(self, source: str, labels: str) -> tuple[Distilled, Path, bool]:
        """A source with labels of a kind, the run folder that keeps its evaluations, and whether they are its own."""
        kind = "hard" if labels == "online" else labels
        if source == "distilled":
            made, folder, own = self._relabelled(self.distilled, kind), self.folder, kind == self.own_labels
        elif source == MATCHED:
            made, folder, own = self._relabelled(self._matched, kind), self.folder, False
        else:
            made, folder, own = *self._coreset(source, kind), True
        return (self._online(made), folder, False) if labels == "online" else (made, folder, own)

    def _teaching(self, protocol: Any, made: Distilled) -> Any:
        images = sum(len(s) for s in made.curriculum.sets)
        return protocol.evaluation(images, len(made.curriculum.phases))

    @property
    def own_labels(self) -> str:
        """Whether the set's own labels count as hard or as soft."""
        return _kind(self.distilled)

    def _coreset(self, matcher: str, labels: str) -> tuple[Distilled, Path]:
        """Real images chosen under the same rules, as an ordinary run, with its folder."""
        kind = "hard" if labels == "hard" else "teacher"
        run = Run(baseline(self.spec, kind, IDENTITY, matcher), self.evaluation.dataset, self.settings)
        run.execute()
        return Distilled.load(run.folder / "distilled.safetensors").on(self.evaluation.device), run.folder

    @cached_property
    def _labelling(self) -> tuple[Problem, Needs]:
        """The experts that label random images, and judge how hard images are: their problem, and which they are."""
        spec = baseline(self.spec, "teacher")
        problem = first_problem(spec, self.evaluation.dataset)
        wanted = needs_of(spec.matcher, problem)
        return prepared(problem, wanted), wanted

    def _relabelled(self, made: Distilled, labels: str) -> Distilled:
        """A set with labels of a kind: its own where they are, otherwise its classes, or what experts say."""
        if labels == _kind(made):
            return made
        return _changed(made, _hardened if labels == "hard" else lambda s: self._softened(s, made.preprocessing))

    def _softened(self, s: SyntheticSet, space: Preprocessing) -> SyntheticSet:
        """The mean prediction of the experts that label random images, for the images as stored or decoded."""
        problem, wanted = self._labelling
        images = _as_real(s.decoder(s.images), space, problem.real.preprocessing)
        shown = mean_labels(problem, images, wanted.experts, max(wanted.snapshots))
        return replace(
            s, labels=shown.view(len(s), s.decoder.copies, -1).mean(1), label_type="teacher", label_kind="probability"
        )

    def _online(self, made: Distilled) -> Distilled:
        """A set whose every batch the first of the experts labels, in the data's own input space, which it knows."""
        problem, wanted = self._labelling
        teacher = Teacher(problem.network.source, problem.experts.snapshot(0, max(wanted.snapshots)))
        own, real = made.preprocessing, problem.real.preprocessing

        def taught(s: SyntheticSet) -> SyntheticSet:
            if own.digest != real.digest:
                seen = s.examples()
                s = replace(s, images=_as_real(seen.images, own, real), labels=seen.labels, decoder=IDENTITY)
            return replace(_hardened(s), teacher=teacher)

        return replace(_changed(made, taught), preprocessing=real)

    @cached_property
    def _matched(self) -> Distilled:
        """Real images with hard labels, one as hard as each of the set's, in one stage."""
        problem, wanted = self._labelling
        scores = difficulty(problem, problem.real.at_hand, wanted.experts, max(wanted.snapshots))
        classes = torch.cat(
            [s.labels.argmax(1).cpu() for s in self._relabelled(self.distilled, "hard").curriculum.sets]
        )
        chosen = problem.real[matched(problem, classes, self._hardness(self.distilled), scores)]
        made, _ = self._coreset(BASELINE, "hard")
        return replace(made, curriculum=Curriculum((SyntheticSet(chosen.images, chosen.labels),), ((0,),)))

    def _hardness(self, made: Distilled) -> Tensor:
        """How hard the experts find each stored image ``(n,)``; the mean over what it is decoded to."""
        (problem, wanted), found = self._labelling, []
        for s in self._relabelled(made, "hard").curriculum.sets:
            images = _as_real(s.decoder(s.images), made.preprocessing, problem.real.preprocessing)
            seen = Examples(images, s.decoder.labels(s.labels))
            scores = difficulty(problem, seen, wanted.experts, max(wanted.snapshots))
            found.append(scores.view(len(s), s.decoder.copies).mean(1))
        return torch.cat(found)

    def hardness(self, source: str) -> float:
        """The mean difficulty of a source's images."""
        return float(self._hardness(self._set(source, "hard")[0]).mean())


def _kind(made: Distilled) -> str:
    return "hard" if all(s.label_type == "hard" for s in made.curriculum.sets) else "soft"


def _changed(made: Distilled, change: Callable[[SyntheticSet], SyntheticSet]) -> Distilled:
    sets = tuple(change(s) for s in made.curriculum.sets)
    return replace(made, curriculum=Curriculum(sets, made.curriculum.phases))


def _as_real(images: Tensor, own: Preprocessing, real: Preprocessing) -> Tensor:
    """Images of a set's own input space in the real data's, which the experts know."""
    return images if own.digest == real.digest else applied(own.invert(images), real)


def _hardened(s: SyntheticSet) -> SyntheticSet:
    """Each image labelled with the class that its labels put first."""
    classes = targets(s.labels, s.label_kind).argmax(1)
    labels = one_hot(classes, s.labels.shape[1]).to(s.labels.dtype)
    return replace(s, labels=labels, label_type="hard", label_kind="probability")


def control_matrix(source: Opened, options: EvalOptions, settings: Settings, coresets: Sequence[str] = USUAL) -> Matrix:
    """Evaluate all cells, and the scores that follow. Every student is stored, so an interrupted call goes on.

    ``coresets`` name the real images beside the set, of which random ones are always there.
    """
    coresets = tuple(dict.fromkeys((BASELINE, *coresets)))
    _require_coresets(coresets)
    plan = planned(source.distilled, options)
    protocol = plan.evaluation.protocol
    if protocol.online:
        raise UsageError(
            f"under protocol {protocol.name!r} a teacher labels every batch, so there are no hard labels to compare "
            "with; add --protocol default"
        )
    torch.set_num_threads(plan.threads)
    folder = source.folder or adopted(source, settings.out)
    settings = replace(settings, students=plan.evaluation.students)
    controls = _Controls(folder, plan, _spec(plan), settings, coresets)
    hardness = {name: controls.hardness(name) for name in ("distilled", *coresets)}
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
                "difficulty": hardness[name],
                "selection": record.selection,
                "protocol": record.protocol,
            }
        )
    made = Matrix(rows, _scores(found, controls, plan))
    write_json(folder / "controls.json", made.record())
    return made


def _require_coresets(names: Sequence[str]) -> None:
    for name in names:
        if name != MATCHED and takes_steps(registry().get("matcher", name)):
            raise UsageError(
                f"matcher {name!r} learns images, which takes a run of its own; name coresets as --coresets, or "
                f"{MATCHED}: real images as hard as those of the set"
            )


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
