"""Students that train together: one vectorised step for all of them, each with its own batches and learning rate.

Shapes: v students, vectors ``(v, p)``, b images in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import grad, vmap

from ddbench.base.guard import guarded
from ddbench.base.progress import report
from ddbench.base.seeds import Seed
from ddbench.data.dataset import Examples
from ddbench.train.compile import forward_flops
from ddbench.train.fit import Labeller, Lessons, Recipe, Rows, Source, Student, Watch, paced
from ddbench.train.network import Network
from ddbench.train.optimisers import State
from ddbench.train.precision import training

TOGETHER = 16  # students at once: their activations are held together
# Operations of a forward pass over one batch up to which students share a step on CUDA: those of a hundred images of
# ConvNet-D3 of width 128, where four unrolls stacked took 0.86 of the time of one after another. With 256 images, ten
# students together were 0.70 times as fast as one at a time: grouped convolutions cost more than launches do.
FILLS = 1.05e10


def fit_together(
    network: Network,
    students: Sequence[Student],
    source: Source,
    recipe: Recipe,
    seeds: Sequence[Seed],
    *,
    lrs: Sequence[float | None],
    teacher: Labeller | None = None,
    watches: Sequence[Watch | None] = (),
    rows: Rows | None = None,
    first_epoch: int = 0,
    stop_epoch: int | None = None,
    on_epoch: Callable[[int, list[Student]], None] | None = None,
    what: str | None = "training",
) -> list[Student]:
    """:func:`ddbench.train.fit.fit` for several students of one network at once, with the same result up to rounding.

    Student i sees the batches, augmentations and mixtures of ``seeds[i]``, at ``lrs[i]``. Raises RuntimeError when
    vmap cannot run the network; :func:`stackable` tells beforehand.
    """
    source, per_epoch, total = paced(source, recipe)
    rule, lessons = recipe.rule(network), Lessons(recipe, teacher)
    vectors = torch.stack([s.vector.detach() for s in students])
    parameters, buffers = vectors.split([network.parameters, network.length - network.parameters], 1)
    state = _stacked([s.state or rule.init(p) for s, p in zip(students, parameters, strict=True)])
    stop = min(math.ceil(total / per_epoch), math.inf if stop_epoch is None else stop_epoch)
    with guarded(f"training network {network.source.name!r}", mixed=True), training(network.device, recipe.precision):
        for epoch in range(first_epoch, int(stop)):
            step = epoch * per_epoch
            for batch in zip(*_plans(lessons, source, rows, epoch, seeds, total - step), strict=True):
                if recipe.schedule == "step-restart" and step == recipe.half(total):
                    state = _stacked([rule.init(p) for p in parameters])
                shown = [lessons.shown(source[which], drawn) for which, drawn in batch]
                g, buffers = _gradients(network, lessons, parameters, buffers, shown)
                with torch.no_grad():
                    rate = parameters.new_tensor([recipe.rate(step, total, lr or recipe.lr) for lr in lrs])
                    parameters, state = vmap(rule.update)(parameters, state, g, rate)
                step += 1
                _watched(watches, step, parameters, buffers, state)
            if on_epoch is not None:
                on_epoch(epoch + 1, _students(parameters, buffers, state))
            if what is not None:
                report(what, step, min(total, int(stop) * per_epoch))
    return _students(parameters, buffers, state)


def pays_together(network: Network, batch: int) -> bool:
    """Whether one vectorised step for several students on ``batch`` images each is faster: a rule of shapes.

    On CUDA while one student's batch does not fill the device; on the CPU never, since it is not.
    """
    return network.device.type == "cuda" and batch * forward_flops(network) <= FILLS


def trains_together(network: Network, recipe: Recipe, batch: int, asked: bool | None = None) -> bool:
    """Whether students train by one vectorised step: where that pays for their largest ``batch``, and where it can.

    ``asked`` overrides the rule, and so does a recipe that asks for what only one student at a time has. A network
    that does not allow it trains one student at a time all the same.
    """
    alone = recipe.kernels == "fused" or recipe.launch == "graph"
    wanted = pays_together(network, batch) and not alone if asked is None else asked
    return wanted and stackable(network, recipe)


def stackable(network: Network, recipe: Recipe) -> bool:
    """Whether students of this network can train together: vmap runs it, and it draws nothing while it trains.

    It is tried once for each network and recipe: taught starts ask for each lesson of each student.
    """
    if recipe.optimizer == "gsam":
        return False
    known = _stackable.setdefault(network, {})
    if recipe not in known:
        known[recipe] = _tried(network, recipe)
    return known[recipe]


_stackable: WeakKeyDictionary[Network, dict[Recipe, bool]] = WeakKeyDictionary()


def _tried(network: Network, recipe: Recipe) -> bool:
    with Seed(0).scope():
        vectors = network.init(Seed(0)).expand(2, -1)
    parameters, buffers = vectors.split([network.parameters, network.length - network.parameters], 1)
    images = torch.linspace(-1, 1, 2 * math.prod(network.shape), device=network.device, dtype=network.dtype)
    labels = torch.eye(network.classes, device=network.device, dtype=network.dtype)[:2]
    batch = Examples(images.view(2, *network.shape), labels)
    try:
        _gradients(network, Lessons(replace(recipe, online=False), None), parameters, buffers, [batch, batch])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def _plans(
    lessons: Lessons, source: Source, rows: Rows | None, epoch: int, seeds: Sequence[Seed], steps: int
) -> list[list[tuple]]:
    """What each student sees in an epoch: rows, and how they are augmented and mixed, drawn as ``fit`` draws them."""
    plans = []
    with seeds[0].scope():
        for seed in seeds:
            (seed / "epoch" / epoch).sow()
            batches = lessons.recipe.batches_of(epoch, source, rows)[:steps]
            plans.append([(batch, lessons.draw(len(batch))) for batch in batches])
    return plans


def _gradients(
    network: Network, lessons: Lessons, parameters: Tensor, buffers: Tensor, batches: Sequence[Examples]
) -> tuple[Tensor, Tensor]:
    """The directions ``(v, p)``, and the batch-norm buffers ``(v, s)`` after these batches."""

    def objective(theta: Tensor, held: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, after = lessons.logits(network, torch.cat([theta, held]), images)
        return lessons.loss(logits, labels), after

    images, labels = torch.stack([b.images for b in batches]), torch.stack([b.labels for b in batches])
    return vmap(grad(objective, has_aux=True))(parameters.detach(), buffers.detach(), images, labels)


def _watched(watches: Sequence[Watch | None], step: int, parameters: Tensor, buffers: Tensor, state: State) -> None:
    if any(watch is not None and step in watch.steps for watch in watches):
        for watch, student in zip(watches, _students(parameters, buffers, state), strict=True):
            if watch is not None:
                watch.see(step, student)


def _stacked(states: Sequence[State]) -> State:
    return tuple(torch.stack(tensors) for tensors in zip(*states, strict=True))


def _students(parameters: Tensor, buffers: Tensor, state: State) -> list[Student]:
    vectors = torch.cat([parameters, buffers], 1)
    return [Student(vector.clone(), tuple(s[i].clone() for s in state)) for i, vector in enumerate(vectors)]
