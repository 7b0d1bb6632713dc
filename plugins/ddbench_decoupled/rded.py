"""RDED: the crops of real images that a teacher finds most realistic, tiled, with the teacher's labels.

Sun, Shi, Yu & Lin, "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
CVPR 2024. Shapes: m candidates of a class, n images, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ddbench import Examples, Needs, Problem, Published, SyntheticSet, Teacher, UsageError
from ddbench_decoupled import teachers
from ddbench_decoupled.crops import cut, draw_boxes, surround, tile

AT_ONCE = 256  # crops per forward pass


@dataclass(frozen=True)
class Rded:
    """Choose, tile, label: no image is optimised.

    | paper | here |
    | --- | --- |
    | observer model | a teacher trained on the real data |
    | realism of a patch | minus the teacher's cross entropy for the class of the image it was cut from |
    | T', K | ``candidates`` random images of a class; ``crops`` of each, of which the most realistic one stays |
    | N = factor^2 | patches of an image; the best ipc N of a class are stored |

    Patches have 1/``factor`` of an image's sides, and are judged in the middle of an otherwise mean image, as released:
    at the size at which a student will see them. Students see the tiled image as one image, with one label: this is
    no decoder. The paper tiles 2x2 on ImageNet and nothing on images of 32x32 pixels.

    All candidates of a class are ranked once, from draws of the run's seed alone, by the teacher of the first stage;
    each stage takes the next ranks. So no real image is used twice, and earlier stages hold the more realistic patches.
    Only where a scheduler leaves real images out of later stages (``drop`` of ``pdd``) are these ranked anew, and an
    image may come again.

    The set has fixed labels, the teacher's predictions on the stored images at ``temperature``, and brings its teacher
    along for ``--protocol rded-paper``, which labels every batch anew. The published accuracies are for that.
    """

    name = "rded"
    paper = "Sun et al., CVPR 2024"
    paper_url = "https://arxiv.org/abs/2312.03526"
    published = (Published("RDED"),)
    steps = 0
    factor: Annotated[int, Ge(1), Le(8), "patches along each side of an image"] = 1
    candidates: Annotated[int, Ge(1), "real images per class to choose from, as far as there are so many"] = 300
    crops: Annotated[int, Ge(1), "random crops of each candidate"] = 5
    smallest: Annotated[float, Gt(0), Le(1), "least share of an image's area in a crop; 1 for whole images"] = 0.08
    labels: teachers.Labels = "teacher"
    temperature: teachers.Temperature = 1.0
    teacher_norm: Annotated[Literal["batch", "same"], "the teacher's norm: batch, or that of the students"] = "batch"
    teacher_epochs: teachers.Epochs = 30
    teacher_lr: teachers.Lr = 0.05
    teacher_batch: teachers.Batch = 128

    def needs(self, problem: Problem) -> Needs:
        self._check_budget(problem)
        source = problem.network.source
        if self.teacher_norm == "batch":
            source = teachers.batch_normed(problem, "; or set matcher.teacher_norm=same")
        return teachers.needs(problem, source, self.teacher_epochs, self.teacher_lr, self.teacher_batch)

    @torch.no_grad()
    def init(self, problem: Problem) -> Examples:
        """The stored images with their labels."""
        before, wanted = self._budget(problem)
        teacher, stored = teachers.of(problem), []
        with (problem.seed / "rded").scope():  # not the stage's: every stage is to see the same ranking
            drawn = [self._draw(problem, members) for members in problem.real.members]
        for label, (rows, boxes) in enumerate(drawn):
            losses = self._judge(problem, teacher, rows, boxes, label)
            best, ranks = rank(losses)
            chosen = ranks[before : before + wanted]
            patches = cut(problem.real.pixels[rows[chosen]], boxes[chosen, best[chosen]], self._patch(problem))
            stored.append(tile(patches, self.factor, problem.real.shape[1:]))
        images = problem.real.preprocessing(torch.cat(stored))
        if self.labels == "teacher":
            return Examples(images, teachers.labels(problem, images, self.temperature))
        return Examples(images, teachers.hard_labels(problem, images))

    def step(self, problem: Problem, state: Examples, k: int) -> tuple[Examples, dict]:
        return state, {}

    def result(self, problem: Problem, state: Examples) -> SyntheticSet:
        return SyntheticSet(
            state.images.clone(), state.labels.clone(), label_type=self.labels, teacher=teachers.of(problem)
        )

    def _draw(self, problem: Problem, members: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates ``(m,)`` among a class's images ``members``, and boxes ``(m, crops, 4)`` in them."""
        rows = members[torch.randperm(len(members))[: self.candidates]]
        boxes = draw_boxes(len(rows) * self.crops, problem.real.shape[1:], self.smallest)
        return rows, boxes.view(len(rows), self.crops, 4)

    def _judge(self, problem: Problem, teacher: Teacher, rows: Tensor, boxes: Tensor, label: int) -> Tensor:
        """The teacher's cross entropy ``(m, crops)`` of each crop for class ``label``."""
        real, sides = problem.real, problem.real.shape[1:]
        mean = real.preprocessing.mean.cpu()  # of each channel, or under ZCA of each pixel
        mean = mean.view(real.shape) if real.preprocessing.std is None else mean.view(-1, 1, 1).expand(real.shape)
        blank = (255 * mean).round().to(torch.uint8)
        losses, images = [], max(1, AT_ONCE // self.crops)
        for own, boxed in zip(rows.split(images), boxes.split(images), strict=True):
            pixels = real.pixels[own].repeat_interleave(self.crops, 0)
            patches = surround(cut(pixels, boxed.flatten(0, 1), self._patch(problem)), sides, blank)
            logits = teacher.logits(real.preprocessing(patches), problem.classes, AT_ONCE)
            losses.append(-logits.log_softmax(1)[:, label].view(-1, self.crops).cpu())
        return torch.cat(losses)

    def _patch(self, problem: Problem) -> tuple[int, int]:
        _, height, width = problem.real.shape
        return height // self.factor, width // self.factor

    def _budget(self, problem: Problem) -> tuple[int, int]:
        """Patches per class that earlier stages have, and that this one is to take."""
        earlier = sum(len(s) for s in problem.frozen.sets) // problem.classes
        return earlier * self.factor**2, problem.ipc * self.factor**2

    def _check_budget(self, problem: Problem) -> None:
        """Raise UsageError, before a teacher is trained, when images or pixels are too few."""
        asked, smallest = sum(self._budget(problem)), problem.real.smallest_class
        said = f"{asked} patches per class asked for, each of another real image, but there are"
        if asked > smallest:
            raise UsageError(
                f"{said} {smallest} training images in the smallest class; choose a smaller --ipc or matcher.factor"
            )
        if asked > self.candidates:
            raise UsageError(f"{said} {self.candidates} candidates; set matcher.candidates={asked} or more")
        if min(problem.real.shape[1:]) < self.factor:
            raise UsageError(
                f"images of {problem.real.shape[1]}x{problem.real.shape[2]} pixels have no room for "
                f"{self.factor}x{self.factor} patches; choose a smaller matcher.factor"
            )


def rank(losses: Tensor) -> tuple[Tensor, Tensor]:
    """For losses ``(m, crops)``, the best crop of each image ``(m,)``, and the images ordered by it, best first."""
    lowest, best = losses.min(1)
    return best, lowest.argsort(stable=True)
