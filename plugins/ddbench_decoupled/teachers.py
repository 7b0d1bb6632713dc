"""The teacher of both methods: its options, its architecture, how it is trained, and the labels that it gives.

Shapes: n images, k classes.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ddbench import Needs, Problem, Recipe, SyntheticSet, Teacher, UsageError

AUGMENT = ("flip", "crop")  # what networks on CIFAR are usually trained with, in SRe2L's code too
Labels = Annotated[Literal["teacher", "hard"], "the fixed labels"]
Temperature = Annotated[float, Gt(0), "of the fixed labels (labels=teacher)"]
Epochs = Annotated[int, Ge(1), "epochs that the teacher is trained for"]
Lr = Annotated[float, Gt(0), "its first learning rate, of a cosine"]
Batch = Annotated[int, Ge(1), "its batch size"]


def needs(problem: Problem, source: Any, epochs: int, lr: float, batch: int) -> Needs:
    """One teacher with the architecture ``source``, or with each of several in a tuple, in the first stage.

    Trained as in SRe2L's code: SGD with momentum 0.9 and weight decay 5e-4, a cosine from ``lr`` to zero, random crops
    and flips, as far as the dataset's own augmentation has them. RDED publishes weights of teachers, but not how they
    were made.
    """
    if _earlier(problem) is not None:
        return Needs()
    augment = problem.dsa.composing(AUGMENT).strategy
    recipe = Recipe(
        epochs=epochs, batch=batch, lr=lr, schedule="cosine", momentum=0.9, weight_decay=5e-4, augment=augment
    )
    return Needs(teachers=1, teacher_network=source, teacher_recipe=recipe)


def batch_normed(problem: Problem, otherwise: str) -> Any:
    """The run's network source, with batch norm in place of another norm where it has none.

    Raises UsageError where it cannot have any; ``otherwise`` is a further way out, to end the sentence with.
    """
    source: Any = problem.network.source
    name = source.name
    if _has_batch_norm(problem, source):
        return source
    if is_dataclass(source) and any(f.name == "norm" for f in fields(source)):
        changed = replace(source, norm="batch")  # pyright: ignore[reportArgumentType]
        if _has_batch_norm(problem, changed):
            return changed
    raise UsageError(
        f"network {name!r} has no batch norm, whose statistics the teacher is to have learned; use one that can "
        f"have it, such as convnet or resnet18{otherwise}"
    )


def of(problem: Problem) -> Teacher:
    """The teacher of a run, of one or several networks: later stages go on with that of the first."""
    earlier = _earlier(problem)
    if earlier is not None:  # whatever their own data and starts
        return earlier
    first, *others = (problem.teacher(index) for index in range(max(1, len(problem.teachers))))
    return replace(first, others=tuple(others)) if others else first


def start(problem: Problem, asked: str) -> tuple[Tensor, Tensor]:
    """Images ``(n, c, h, w)`` to begin at, ``noise`` or ``real`` ones, with their hard labels ``(n, k)``."""
    if asked == "real":
        examples = problem.sample()
        return examples.images, examples.labels
    images = torch.randn(problem.classes * problem.ipc, *problem.real.shape).to(problem.network.device)
    return images, hard_labels(problem, images)


def labelled(problem: Problem, images: Tensor, targets: Tensor, asked: Labels, temperature: float) -> SyntheticSet:
    """The set of ``images``, its teacher, and the labels ``asked`` for; ``targets`` ``(n, k)`` are the hard ones."""
    made = labels(problem, images, temperature) if asked == "teacher" else targets.clone()
    return SyntheticSet(images.clone(), made, label_type=asked, teacher=of(problem))


def labels(problem: Problem, images: Tensor, temperature: float) -> Tensor:
    """The teacher's predictions ``(n, k)`` on ``images``, softened by ``temperature``."""
    return (of(problem).logits(images, problem.classes) / temperature).softmax(1)


def hard_labels(problem: Problem, images: Tensor) -> Tensor:
    """One-hot labels ``(n, k)`` of ``images`` that lie class by class."""
    one_hot = torch.eye(problem.classes, dtype=images.dtype, device=images.device)
    return one_hot.repeat_interleave(problem.ipc, 0)


def _earlier(problem: Problem) -> Teacher | None:
    return next((s.teacher for s in problem.frozen.sets if s.teacher is not None), None)


def _has_batch_norm(problem: Problem, source: Any) -> bool:
    with torch.device("meta"):  # only its kind matters: building here must not draw random numbers
        module = source.build(problem.real.shape, problem.classes)
    return any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
