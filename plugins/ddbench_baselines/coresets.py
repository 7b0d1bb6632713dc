"""Coresets: real images, chosen rather than learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from ddbench import Examples, Needs, Problem, SyntheticSet
from ddbench.trajectory import mean_labels


@dataclass(frozen=True)
class Random:
    """Random real images of each class: the baseline of every claim. A coreset is a matcher without steps.

    ``labels="teacher"`` labels them with the mean prediction of ``experts`` networks trained on the real
    data for ``teacher_epochs`` (early-stopped, after Qin et al., "A Label is Worth a Thousand Images",
    NeurIPS 2024).
    """

    name = "random"
    steps = 0
    labels: Annotated[Literal["hard", "teacher"], "what the images are labelled with"] = "hard"
    experts: Annotated[int, Ge(1), "networks that label the images (labels=teacher)"] = 5
    teacher_epochs: Annotated[int, Ge(1), "epochs after which they are stopped (labels=teacher)"] = 20

    def needs(self, problem: Problem) -> Needs:
        return Needs(self.experts, (self.teacher_epochs,)) if self.labels == "teacher" else Needs()

    def init(self, problem: Problem) -> Examples:
        """The images, drawn from the run's seed, with their labels."""
        examples = problem.sample()
        if self.labels == "hard":
            return examples
        labels = mean_labels(problem, examples.images, self.experts, self.teacher_epochs)
        return Examples(examples.images, labels)

    def step(self, problem: Problem, state: Examples, k: int) -> tuple[Examples, dict]:
        return state, {}

    def result(self, problem: Problem, state: Examples) -> SyntheticSet:
        return SyntheticSet(state.images, state.labels, label_type=self.labels)
