"""What all coresets share: their options, their labels, and images of which none is taken twice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge

from ddbench import Examples, Needs, Problem, SyntheticSet, Teacher, UsageError
from ddbench.problem.labels import mean_labels


@dataclass(frozen=True)
class Coreset:
    """The options of every coreset. A coreset is a matcher without steps: ``init`` chooses the images.

    ``labels="teacher"`` labels them with the mean prediction of ``experts`` networks trained on the real
    data for ``teacher_epochs`` (early-stopped, after Qin, Deng & Alvarez-Melis, "A Label is Worth a Thousand Images in
    Dataset Distillation", NeurIPS 2024). Where several images are packed into a stored one, that is labelled with
    the mean prediction of what it is decoded to.
    """

    steps = 0
    decodes = True
    labels: Annotated[Literal["hard", "teacher"], "what the images are labelled with"] = "hard"
    experts: Annotated[int, Ge(1), "networks that label the images (labels=teacher)"] = 5
    teacher_epochs: Annotated[int, Ge(1), "epochs after which they are stopped (labels=teacher)"] = 20

    def reads(self) -> tuple[int, ...]:
        """The snapshots of the experts that images are chosen by."""
        return ()

    def choose(self, problem: Problem) -> Examples:
        """``ipc`` stored images of each class, class after class, with hard labels."""
        raise NotImplementedError

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError, before any expert is trained, when a class has too few images to choose from."""
        if self.reads():
            check_budget(problem)
        epochs = {*self.reads(), *([self.teacher_epochs] if self.labels == "teacher" else [])}
        return Needs(self.experts, tuple(sorted(epochs))) if epochs else Needs()

    def init(self, problem: Problem) -> Examples:
        examples = self.choose(problem)
        if self.labels == "hard":
            return examples
        decoded = mean_labels(problem, problem.decoder(examples.images), self.experts, self.teacher_epochs)
        return Examples(examples.images, decoded.view(len(examples), problem.decoder.copies, -1).mean(1))

    def step(self, problem: Problem, state: Examples, k: int) -> tuple[Examples, dict]:
        return state, {}

    def result(self, problem: Problem, state: Examples) -> SyntheticSet:
        made = SyntheticSet(state.images.clone(), state.labels.clone(), label_type=self.labels)
        if self.labels == "hard":
            return made
        # one of those that label, for protocols that label every batch anew: what rded is to be compared with there
        vector = problem.experts.snapshot(0, self.teacher_epochs)
        return replace(made, teacher=Teacher(problem.network.source, vector))


def check_budget(problem: Problem) -> None:
    """Raise UsageError when a class has fewer images than are asked for."""
    before = sum(len(s) * s.decoder.copies for s in problem.frozen.sets) // problem.classes
    asked, smallest = before + problem.shown, problem.real.smallest_class
    if asked > smallest:
        packed = f" ({problem.decoder.copies} to each that is stored)" if problem.decoder.factor > 1 else ""
        raise UsageError(
            f"{asked} real images per class asked for{packed}, but the smallest class has {smallest} to choose "
            "from; choose a smaller --ipc"
        )
