"""CCFS: distilled images, and on top of them real ones that a network that learned from those still gets wrong.

Chen et al., "Curriculum Coarse-to-Fine Selection for High-IPC Dataset Distillation", CVPR 2025.
Shapes: n real images, k classes, c channels, h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ddbench import Examples, Needs, Problem, Published, Recipe, Student, SyntheticSet, Teacher, UsageError, fit
from ddbench.problem.labels import forgotten, right
from ddbench_decoupled import curriculum as curricula
from ddbench_decoupled import teachers
from ddbench_decoupled.sre2l import Sre2l

AT_ONCE = 256  # real images per forward pass
SAME = 1e-4  # of preprocessed pixels: real images that are nearer than this to a stored one are that one
WEIGHT_DECAY = 1e-4  # of filters


@dataclass(frozen=True)
class Ccfs:
    """A share ``alpha`` of the images is distilled, the rest are real ones that are chosen in ``phases``.

    | paper | here |
    | --- | --- |
    | distilled data | ``sre2l`` with CDA's ``curriculum``; int(alpha ipc) images of a class, at least one |
    | filter | the run's network, which learns all images so far from the teacher, anew in every phase |
    | coarse selection | images that the teacher gets right and the filter wrong |
    | fine selection | of these in each class the ``order`` (easiest) by ``score`` |
    | difficulty score | ``forgetting`` over the first ``epochs`` epochs of ``experts``, or the filter's logit |

    Filters are trained as in the code by KL(teacher, filter) at temperature T times T^2, T = ``filter_temperature``,
    by SGD with momentum 0.9 and a cosine. Where the coarse selection leaves fewer images of a class than it needs, the
    rest comes from those that the teacher gets right, then from any others, in the same order. No real image is
    taken twice, also not from earlier stages.

    It is published for many images (250 per class of CIFAR-10 and more). With one image per class nothing real is
    chosen, and the set is one of CDA's. It is a coreset to the harness: everything happens before the first step, and
    an interrupted run chooses anew.

    The labels are fixed, the teacher's predictions on all images at ``temperature``; the set brings its teacher along
    for protocols with online labels, such as ``sre2l-paper``.
    """

    name = "ccfs"
    paper = "Chen et al., CVPR 2025"
    paper_url = "https://arxiv.org/abs/2503.18872"
    published = (Published("CCFS"),)
    steps = 0
    alpha: Annotated[float, Gt(0), Le(1), "share of the images that is distilled"] = 0.2
    phases: Annotated[int, Ge(1), "phases in which real images are chosen"] = 3
    order: Annotated[Literal["easiest", "hardest", "random"], "which of those that are misclassified"] = "easiest"
    score: Annotated[Literal["forgetting", "logits"], "what tells how hard an image is"] = "forgetting"
    experts: Annotated[int, Ge(1), "networks over which events are counted (score=forgetting)"] = 5
    epochs: Annotated[int, Ge(2), "their epochs over which events are counted (score=forgetting)"] = 20
    recover: Annotated[int, Ge(1), "iterations in which images are distilled"] = 300
    lr_img: Annotated[float, Gt(0), "first learning rate of Adam, which falls to zero as a cosine"] = 0.25
    r_bn: Annotated[float, Ge(0), "weight of the gap of batch-norm statistics"] = 0.01
    curriculum: curricula.Curriculum = "cosine"
    smallest: curricula.Smallest = 0.08
    filter_epochs: Annotated[int, Ge(1), "epochs of a filter"] = 100
    filter_lr: Annotated[float, Gt(0), "first learning rate of a filter, of a cosine"] = 0.2
    filter_batch: Annotated[int, Ge(1), "batch size of a filter"] = 32
    filter_temperature: Annotated[float, Gt(0), "of the predictions that a filter learns"] = 20.0
    augment: Annotated[str, "of what filters learn from; 'dataset' for the dataset's own"] = "dataset"
    labels: teachers.Labels = "teacher"
    temperature: teachers.Temperature = 1.0
    teacher_epochs: teachers.Epochs = 30
    teacher_lr: teachers.Lr = 0.05
    teacher_batch: teachers.Batch = 128

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError, before anything is trained, when a class has too few real images."""
        earlier, chosen = sum(len(s) for s in problem.frozen.sets) // problem.classes, sum(self.counts(problem.ipc)[1])
        if earlier + chosen > problem.real.smallest_class:
            raise UsageError(
                f"{chosen} real images per class are to be chosen, and earlier stages may hold {earlier}, but the "
                f"smallest class has {problem.real.smallest_class}; choose a smaller --ipc or a larger matcher.alpha"
            )
        source = teachers.batch_normed(problem, "")
        wanted = teachers.needs(problem, source, self.teacher_epochs, self.teacher_lr, self.teacher_batch)
        if self.score == "forgetting":
            wanted = replace(wanted, experts=self.experts, snapshots=tuple(range(1, self.epochs + 1)))
        return wanted

    def counts(self, ipc: int) -> tuple[int, list[int]]:
        """Images of a class that are distilled, and real ones of each phase, as even as possible, first ones larger."""
        distilled = max(1, int(self.alpha * ipc))
        share, rest = divmod(ipc - distilled, self.phases)
        return distilled, [share + (phase < rest) for phase in range(self.phases)]

    def init(self, problem: Problem) -> Examples:
        """All images, class after class, the distilled ones of each first, with their labels."""
        distilled, counts = self.counts(problem.ipc)
        teacher, made = teachers.of(problem), self._distilled(problem, distilled)
        with torch.no_grad():
            known, free = _right(problem, teacher), ~held(problem)
        chosen = [torch.empty(0, dtype=torch.int64) for _ in problem.real.members]
        for phase, count in enumerate(counts):
            if count:
                logits = self._filtered(problem, teacher, made, torch.cat(chosen), phase)
                wrong = logits.argmax(1) != problem.real.targets
                hard = self._hardness(problem, logits)
                picked = [
                    members[pick(hard[members], (known & wrong)[members], known[members], free[members], count)]
                    for members in problem.real.members
                ]
                chosen = [torch.cat(parts) for parts in zip(chosen, picked, strict=True)]
                free[torch.cat(picked)] = False
        images = torch.cat(
            [
                torch.cat([made[label * distilled : (label + 1) * distilled], problem.real[rows].images])
                for label, rows in enumerate(chosen)
            ]
        )
        labels = teachers.hard_labels(problem, images)
        if self.labels == "teacher":
            labels = teachers.labels(problem, images, self.temperature)
        return Examples(images, labels)

    def step(self, problem: Problem, state: Examples, k: int) -> tuple[Examples, dict]:
        return state, {}

    def result(self, problem: Problem, state: Examples) -> SyntheticSet:
        return SyntheticSet(
            state.images.clone(), state.labels.clone(), label_type=self.labels, teacher=teachers.of(problem)
        )

    def filter_recipe(self) -> Recipe:
        """How a filter learns: T^2 KL(teacher, filter) at temperature T.

        ``fit`` descends the cross entropy at T, whose gradient is that of KL. A factor T^2 of the loss is one of the
        learning rate, once the weight decay is divided by it.
        """
        square = self.filter_temperature**2
        return Recipe(
            epochs=self.filter_epochs,
            batch=self.filter_batch,
            lr=self.filter_lr * square,
            schedule="cosine",
            momentum=0.9,
            weight_decay=WEIGHT_DECAY / square,
            augment=self.augment,
            online=True,
            temperature=self.filter_temperature,
        )

    def _distilled(self, problem: Problem, count: int) -> Tensor:
        """``count`` images of each class, class after class."""
        method = Sre2l(
            steps=self.recover,
            lr_img=self.lr_img,
            r_bn=self.r_bn,
            curriculum=self.curriculum,
            smallest=self.smallest,
        )
        part = replace(problem, ipc=count)
        state = method.init(part)
        for k in range(self.recover):
            state, _ = method.step(part, state, k)
        return state.images

    def _filtered(self, problem: Problem, teacher: Teacher, made: Tensor, rows: Tensor, phase: int) -> Tensor:
        """The logits ``(n, k)`` of real images in a filter that learned earlier stages, ``made`` and real ``rows``."""
        parts, earlier = [made, problem.real[rows].images], problem.frozen.frozen_examples
        images = torch.cat(parts if earlier is None else [earlier.images, *parts])
        seed, network = problem.seed / "ccfs" / len(problem.frozen) / phase, problem.network
        blank = images.new_zeros(len(images), problem.classes)  # the teacher labels every batch
        student = fit(
            network,
            Student(network.init(seed / "start")),
            Examples(images, blank),
            self.filter_recipe().on(problem.augment),
            seed,
            teacher=partial(teacher.logits, classes=problem.classes),
            what=f"filter {phase}",
        )
        with torch.no_grad():
            batches = problem.real.at_hand.batches(AT_ONCE)
            return torch.cat([network.apply(student.vector, b.images, train=False).cpu() for b in batches])

    def _hardness(self, problem: Problem, logits: Tensor) -> Tensor:
        """What images are sorted by, lowest first, ``(n,)``; a phase's own ``logits`` ``(n, k)`` may be it."""
        if self.order == "random":
            return torch.rand(len(logits))
        if self.score == "logits":
            hard = -logits.gather(1, problem.real.targets[:, None])[:, 0].double()
        else:
            hard = self._forgotten(problem).double()
        return -hard if self.order == "hardest" else hard

    def _forgotten(self, problem: Problem) -> Tensor:
        """How often each real image was forgotten ``(n,)``, over all experts."""
        if "ccfs" not in problem.workspace:
            counts = torch.zeros(len(problem.real), dtype=torch.int64)
            for expert in range(self.experts):
                vectors = (problem.experts.snapshot(expert, epoch) for epoch in range(1, self.epochs + 1))
                counts += forgotten(torch.stack([right(problem, v, AT_ONCE) for v in vectors]))
            problem.workspace["ccfs"] = counts
        return problem.workspace["ccfs"]


def pick(hard: Tensor, coarse: Tensor, known: Tensor, free: Tensor, count: int) -> Tensor:
    """``count`` places of ``(m,)`` images: lowest ``hard`` first, of those in ``coarse``, then ``known``, then any.

    Only ``free`` ones; equals in random order.
    """
    tier = torch.where(coarse, 0, torch.where(known, 1, 2))
    order = torch.randperm(len(hard))
    order = order[hard[order].argsort(stable=True)]
    order = order[tier[order].argsort(stable=True)]
    return order[free[order]][:count]


def held(problem: Problem) -> Tensor:
    """Which real images earlier stages hold, ``(n,)``."""
    earlier = problem.frozen.frozen_examples
    if earlier is None:
        return torch.zeros(len(problem.real), dtype=torch.bool)
    stored = earlier.images.flatten(1)
    gaps = [
        torch.cdist(b.images.flatten(1), stored, p=torch.inf).amin(1) for b in problem.real.at_hand.batches(AT_ONCE)
    ]
    return (torch.cat(gaps) < SAME).cpu()


def _right(problem: Problem, teacher: Teacher) -> Tensor:
    """Which real images the teacher classifies right, ``(n,)``."""
    batches = problem.real.at_hand.batches(AT_ONCE)
    guessed = torch.cat([teacher.logits(b.images, problem.classes).argmax(1).cpu() for b in batches])
    return guessed == problem.real.targets
