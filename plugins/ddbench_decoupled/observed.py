"""Statistics of what enters a teacher's layers, and how far those of a batch are from those of the real data.

What G-VBSM and EDC match: before batch norms and convolutions. Shapes: b images, l layers, c channels of a layer,
p patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ddbench import Problem, Seed, Teacher, UsageError

PATCH = 4  # pixels along each side of a patch, of a layer's maps
AT_ONCE = 64  # real images whose statistics are taken together, as in the code

Statistics = tuple[Tensor, ...]  # (mean, variance) (c,) of channels; of a convolution those of patches (p,), too
Memory = list[list[list[Statistics]]]  # statistics remembered of each teacher, each batch, each layer


def module_of(teacher: Teacher, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One network of a teacher as a module in evaluation mode, without gradients of its own."""
    with Seed(0).scope():  # its random weights are overwritten
        module: nn.Module = teacher.source.build(shape, classes)
    module = module.to(teacher.vector.device, teacher.vector.dtype).eval().requires_grad_(False)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, values in teacher.network(shape, classes).layers(teacher.vector).items():
        tensors[name].copy_(values)
    return module


class Observed:
    """A teacher in evaluation mode that tells the statistics of what enters its batch norms and convolutions."""

    def __init__(self, teacher: Teacher, shape: tuple[int, int, int], classes: int) -> None:
        self.module = module_of(teacher, shape, classes)
        self.layers = [m for m in self.module.modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))]
        if not self.layers:
            raise UsageError(
                f"network {teacher.source.name!r} has neither convolutions nor batch norms, whose statistics are to be "
                "matched; leave it out of matcher.teachers"
            )

    def __call__(self, images: Tensor, *, each: bool = False) -> tuple[Tensor, list[Statistics]]:
        """Logits ``(b, k)`` of images ``(b, c, h, w)`` and the statistics of each layer, in the network's order.

        With ``each`` of every image apart: ``(b, c)`` and ``(b, p)``.
        """
        found: dict[nn.Module, Statistics] = {}

        def note(layer: nn.Module, given: tuple[Tensor]) -> None:
            found[layer] = statistics(given[0], patches=isinstance(layer, nn.Conv2d), each=each)

        hooks = [layer.register_forward_pre_hook(note) for layer in self.layers]
        try:
            logits = self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, [found[layer] for layer in self.layers if layer in found]


def statistics(maps: Tensor, *, patches: bool, each: bool = False) -> Statistics:
    """Mean and biased variance of each channel of maps ``(b, c, h, w)``, and of each patch of 4x4 pixels.

    A patch's are over all channels. Maps whose sides are no multiple of 4 are resized to the next one first
    (bilinear), as in the code. Over the images together, or of ``each``.
    """
    own = (2, 3) if each else (0, 2, 3)
    found = (maps.mean(own), maps.var(own, unbiased=False))
    if not patches:
        return found
    sides = [math.ceil(side / PATCH) * PATCH for side in maps.shape[2:]]
    resized = interpolate(maps, size=sides, mode="bilinear") if sides != list(maps.shape[2:]) else maps
    b, c, h, w = resized.shape
    cut = resized.view(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    over = (1, 3, 5) if each else (0, 1, 3, 5)
    return *found, cut.mean(over).flatten(-2), cut.var(over, unbiased=False).flatten(-2)


def gap(wanted: Statistics, found: Statistics) -> Tensor:
    """The sum of the distances of statistics from those that are wanted, each over channels or patches."""
    return torch.stack([(a - b).norm() for a, b in zip(wanted, found, strict=True)]).sum()


def followed(memory: Statistics, found: Statistics, momentum: float) -> tuple[Statistics, Statistics]:
    """Statistics that remember earlier ones, and what to remember next, of a batch's ``found`` (G-VBSM).

    Their value is ``momentum`` times the ``memory`` and the rest of the batch, their gradient that of the batch alone.
    An empty memory is the batch.
    """
    kept = memory or tuple(s.detach() for s in found)
    new = tuple(momentum * k + (1 - momentum) * s.detach() for k, s in zip(kept, found, strict=True))
    return tuple(n + s - s.detach() for n, s in zip(new, found, strict=True)), new


@torch.no_grad()
def of_data(problem: Problem, observed: Observed) -> list[Statistics]:
    """What is wanted of each layer: a batch norm's own running statistics, of convolutions the means over batches.

    The batches are of 64 real images, drawn once, cropped and mirrored as far as the dataset's own augmentation does.
    """
    total: list[Statistics] = []
    for images, _labels in batches_of(problem):
        _, found = observed(images)
        part = len(images) / len(problem.real)
        scaled = [tuple(part * s for s in layer) for layer in found]
        total = [tuple(map(torch.add, a, b)) for a, b in zip(total, scaled, strict=True)] if total else scaled
    wanted = []
    for layer, measured in zip(observed.layers, total, strict=True):
        running = isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
        wanted.append((layer.running_mean, layer.running_var) if running else measured)
    return wanted


@torch.no_grad()
def of_classes(problem: Problem, observed: Observed) -> list[Statistics]:
    """For each layer the mean statistics of single images of each class, ``(k, c)`` and ``(k, p)`` (EDC)."""
    total: list[Statistics] = []
    for images, labels in batches_of(problem):
        _, found = observed(images, each=True)
        sums = [tuple(labels.T @ s for s in layer) for layer in found]
        total = [tuple(map(torch.add, a, b)) for a, b in zip(total, sums, strict=True)] if total else sums
    counts = problem.real.targets.bincount(minlength=problem.classes).to(total[0][0])[:, None]
    return [tuple(s / counts for s in layer) for layer in total]


def batches_of(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Real images ``(b, c, h, w)`` with their labels ``(b, k)`` in an order of their own, the same for every call."""
    with Seed(problem.starts.seed.root).scope():  # statistics are made when a run goes on, too: they draw nothing of it
        augment = problem.dsa.composing(("flip", "crop"))
        drawn = [(rows, augment.draw(len(rows))) for rows in torch.randperm(len(problem.real)).split(AT_ONCE)]
    for rows, draw in drawn:
        batch = problem.real[rows]
        yield draw(batch.images), batch.labels


def dropped(layers: Sequence[Statistics], observed: Observed, rate: float) -> Tensor:
    """Which layers count ``(l,)``: all batch norms, and convolutions but for a random share ``rate``."""
    norms = torch.tensor([isinstance(layer, nn.BatchNorm2d) for layer in observed.layers[: len(layers)]])
    return norms | (torch.rand(len(layers)) >= rate)


def gaps_of(
    wanted: Sequence[tuple[float, list[Statistics]]],
    found: list[Statistics],
    memory: list[Statistics],
    counted: Tensor,
    momentum: float,
) -> tuple[Tensor, list[Statistics]]:
    """The gap of each layer ``(l,)``, the weighted sum of those from all that is ``wanted``, and what to remember.

    A layer that is not ``counted`` has no gap, and keeps what it remembers.
    """
    gaps, kept = [], []
    for layer, counts in enumerate(counted.tolist()):
        before = memory[layer] if memory else ()
        if counts:
            value, before = followed(before, found[layer], momentum)
            gaps.append(torch.stack([weight * gap(target[layer], value) for weight, target in wanted]).sum())
        else:
            gaps.append(found[layer][0].new_zeros(()))
        kept.append(before)
    return torch.stack(gaps), kept
