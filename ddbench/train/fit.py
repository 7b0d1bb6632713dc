"""Recipe and fit: the only trainer. Experts, starts and students are all trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.autograd import grad

from ddbench.base.guard import guarded
from ddbench.base.progress import report
from ddbench.base.seeds import Seed
from ddbench.data.augment import DSA, Draw, strategy
from ddbench.data.dataset import Examples, RealData
from ddbench.data.mixing import Mix, Mixing
from ddbench.errors import UsageError
from ddbench.train.fused import Kernels, chosen, fusing
from ddbench.train.network import Network
from ddbench.train.optimisers import Optimiser, State, optimiser
from ddbench.train.precision import Trained, autocast, training
from ddbench.train.steps import Apart, InPlace, Launch, in_place

PIXELS_AT_ONCE = 4_000_000  # in evaluation: 1000 images of 3x32x32, 325 of 3x64x64
TRAINER_VERSION = 2  # part of every expert's and lesson's key: raise it when fit computes other numbers

Loss = Literal["ce", "mse", "logits"]
Schedule = Literal["constant", "step", "step-restart", "multistep", "quarters", "fifths", "cosine", "cosine-half"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. ``steps`` counts optimiser steps, ``epochs`` passes; give one of them.

    ``epoch_steps`` makes an epoch a number of optimiser steps, whatever the number of images: a part of a pass, drawn
    anew each time, or several passes. All that counts epochs (snapshots of experts, segments) counts these then.

    ``schedule="step"`` multiplies the learning rate by 0.1 at half time; ``step-restart`` also restarts
    the momentum there, as MTT's evaluation does; ``multistep`` divides it by 5 after 2/3 and after 5/6;
    ``quarters`` multiplies it by 0.3 after each quarter, and ``fifths`` halves it after each fifth.
    ``carry`` keeps optimiser state from one phase of a curriculum to the next. Batches are augmented first
    and mixed then, as in IDC, whose strategies name no ``cutout`` where CutMix follows. ``online`` batches
    are labelled after that, by a teacher.

    ``gsam`` is SGD with the gradient of adaptive GSAM (Zhuang et al., ICLR 2022; Kwon et al., ICML 2021), which
    FTD trains its experts with: :func:`flat_gradient`.

    ``easy``, ``all_after``, ``drop_after`` and ``drop`` are a curriculum of difficulty, which experts and teachers
    follow (:func:`ddbench.problem.pacing.places`). Nothing else that is trained by a recipe looks at them.
    """

    optimizer: Annotated[Literal["sgd", "adam", "adamw", "gsam"], "the optimiser"] = "sgd"
    steps: Annotated[int | None, Ge(1), "optimiser steps (instead of epochs)"] = None
    epochs: Annotated[int | None, Ge(1), "passes over the data (instead of steps)"] = None
    epoch_steps: Annotated[int | None, Ge(1), "optimiser steps that count as an epoch; none: a pass"] = None
    batch: Annotated[int, Ge(1), "batch size"] = 256
    lr: Annotated[float, Gt(0), "learning rate"] = 0.01
    schedule: Annotated[Schedule, "learning-rate schedule"] = "constant"
    momentum: Annotated[float, Ge(0), "momentum of SGD"] = 0.0
    weight_decay: Annotated[float, Ge(0), "weight decay"] = 0.0
    decay: Annotated[Literal["all", "weights"], "what decays; weights: no biases, no scales of norms"] = "all"
    augment: Annotated[str, "DSA or 'diffaug:' strategy; 'dataset' for the dataset's own, '' for none"] = "dataset"
    carry: Annotated[bool, "keep optimiser state between phases"] = False
    mixing: Annotated[Literal["none", "cutmix", "mixup"], "mixing of augmented images and their labels"] = "none"
    mix_probability: Annotated[float, Ge(0), Le(1), "probability that a batch is mixed"] = 0.5
    mix_alpha: Annotated[float, Gt(0), "images keep a share of themselves from Beta(alpha, alpha)"] = 1.0
    loss: Annotated[Loss, "soft cross entropy, squared error, or that of the teacher's logits (online)"] = "ce"
    truth: Annotated[float, Ge(0), "weight of the cross entropy with the set's labels beside that (loss=logits)"] = 0.0
    unmixed: Annotated[bool, "a teacher labels images as they are before they are mixed"] = False
    online: Annotated[bool, "a teacher labels every batch"] = False
    temperature: Annotated[float, Gt(0), "of online labels, and of the student's logits beside them"] = 1.0
    rho: Annotated[float, Ge(0), "size of GSAM's step to the worst neighbour"] = 0.01
    alpha: Annotated[float, Ge(0), "how much of the gradient orthogonal to that GSAM descends against"] = 0.3
    vary: Annotated[bool, "start networks and experts come of the run's seed, and not of one for all"] = False
    easy: Annotated[float, Gt(0), Le(1), "share of a class's images, the easiest, that experts begin with"] = 1.0
    all_after: Annotated[int, Ge(0), "epochs after which experts see all images, as many more in each"] = 0
    drop_after: Annotated[tuple[int, ...], "epochs after each of which experts leave out the easiest images"] = ()
    drop: Annotated[tuple[float, ...], "which share of a class's images these are, for each of drop_after"] = ()
    imported: Annotated[str, "id of trajectories that `ddbench import --experts` brought in (experts only)"] = ""
    precision: Annotated[Trained, "of convolutions and matrix products; device: as torch has them there"] = "device"
    kernels: Annotated[Kernels, "layers of ConvNet blocks on CUDA: fused, plain, or as measured (auto)"] = "auto"
    launch: Annotated[Launch, "steps as CUDA graphs where they can be, eagerly, or as measured (auto)"] = "auto"

    def on(self, augment: str) -> Recipe:
        """The recipe on a dataset whose own augmentation is ``augment``."""
        return replace(self, augment=strategy(self.augment, augment))

    def rule(self, network: Network) -> Optimiser:
        """The optimiser's rule for the parameters of a network."""
        decayed = network.weights if self.decay == "weights" else None
        return optimiser(self.optimizer, self.momentum, self.weight_decay, decayed)

    def per_epoch(self, count: int) -> int:
        """The optimiser steps of an epoch over ``count`` images."""
        return self.epoch_steps or math.ceil(count / self.batch)

    def batches(self, count: int) -> list[Tensor]:
        """The rows ``(b,)`` of an epoch's batches, from torch's generator; as in a pass, short ones come last."""
        batches = list(torch.randperm(count).split(self.batch))
        while len(batches) < (self.epoch_steps or 0):
            batches += torch.randperm(count).split(self.batch)
        return batches[: self.epoch_steps]

    def batches_of(self, epoch: int, source: Source, rows: Rows | None) -> list[Tensor]:
        """The rows of an epoch's batches: of all of ``source``, or of what ``rows`` names."""
        if rows is None:
            return self.batches(len(source))
        shown = rows(epoch)
        return [shown[batch] for batch in self.batches(len(shown))]

    def rate(self, step: int, total: int, lr: float) -> float:
        """The learning rate of optimiser step ``step`` of ``total``."""
        if self.schedule.startswith("step"):
            return lr * (0.1 if step >= self.half(total) else 1.0)
        if self.schedule == "multistep":  # as in IDC's evaluation
            return lr * 0.2 ** ((step >= total * 2 // 3) + (step >= total * 5 // 6))
        if self.schedule == "quarters":  # as students of random images with an expert's labels
            return lr * 0.3 ** sum(step >= total * i // 4 for i in range(1, 4))
        if self.schedule == "fifths":  # as in NCFM's evaluation
            return lr * 0.5 ** sum(step >= total * i // 5 for i in range(1, 5))
        if self.schedule == "cosine":
            return lr * (1 + math.cos(math.pi * step / total)) / 2
        if self.schedule == "cosine-half":  # a period of twice the length, as in RDED's evaluation
            return lr * (1 + math.cos(math.pi * step / total / 2)) / 2
        return lr

    @staticmethod
    def half(total: int) -> int:
        """The step from which the ``step`` schedules use the lower rate; a single step is never lowered."""
        return max(1, total // 2)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of -sum_k labels log softmax(logits); both ``(n, k)``."""
    return -(labels * logits.log_softmax(1)).sum(1).mean()


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the mean over the batch of |logits - labels|^2; both ``(n, k)``: the loss of real-valued labels (FRePo)."""
    return (logits - labels).square().sum(1).mean() / 2


class Source(Protocol):
    """Anything with a length whose rows come as Examples: real data, a pool, examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor) -> Examples: ...


@dataclass(frozen=True, eq=False)
class Student:
    """A network in training: its vector, and its optimiser's state."""

    vector: Tensor
    state: State = ()


def paced(source: Source, recipe: Recipe) -> tuple[Source, int, int]:
    """What batches are taken from, the optimiser steps of an epoch, and those in all."""
    source = source.at_hand if isinstance(source, RealData) else source
    per_epoch = recipe.per_epoch(len(source))
    return source, per_epoch, recipe.steps or (recipe.epochs or 1) * per_epoch


@dataclass(frozen=True)
class Watch:
    """Calls ``see(step, student)`` when ``step`` optimiser steps of a training are done, for the ``steps`` named."""

    steps: frozenset[int]
    see: Callable[[int, Student], None]

    def after(self, done: int) -> Watch:
        """The same watch over a training that goes on after ``done`` steps."""
        return Watch(frozenset(s - done for s in self.steps), lambda step, student: self.see(step + done, student))


@contextmanager
def whoever_asks() -> Iterator[None]:
    """Inside the block networks are trained as anywhere else, where the caller computes without gradients or lower.

    For what a matcher asks for in the middle of a step, and what is made only then.
    """
    lowered = [torch.autocast(device, enabled=False) for device in ("cpu", "cuda")]
    with torch.inference_mode(False), torch.enable_grad(), lowered[0], lowered[1]:
        yield


OnEpoch = Callable[[int, Student], None]
Rows = Callable[[int], Tensor]  # an epoch, counted from 0 -> which rows (m,) of a source it shows
Labeller = Callable[[Tensor], Tensor]  # images (n, c, h, w) -> logits (n, k)
Divided = Callable[[Tensor, Examples], Tensor]  # parameters (p,) and a batch -> its gradient (p,), by several processes
Divide = Callable[[Network, "Lessons"], Divided | None]  # None where it is not worth it


def fit(
    network: Network,
    student: Student,
    source: Source,
    recipe: Recipe,
    seed: Seed,
    *,
    lr: float | None = None,
    first_epoch: int = 0,
    stop_epoch: int | None = None,
    on_epoch: OnEpoch | None = None,
    rows: Rows | None = None,
    watch: Watch | None = None,
    teacher: Labeller | None = None,
    divide: Divide | None = None,
    what: str | None = "training",
) -> Student:
    """Train ``student`` on ``source`` by ``recipe``; ``lr`` overrides the recipe's, ``teacher`` labels when online.

    Batches, augmentations and mixtures of epoch e are functions of ``seed / "epoch" / e`` alone, so that training may
    stop after any epoch (``on_epoch(e, student)`` is called when e epochs are done) and go on from there to the same
    bits. ``rows`` has epochs show parts of the data, while the learning rate follows the steps of whole ones. ``watch``
    sees the student after the optimiser steps that it names. ``state`` of the student continues an optimiser; empty
    starts a fresh one. ``divide`` has others take shares of its batches. Progress is told as ``what``.
    """
    source, per_epoch, total = paced(source, recipe)
    at = _begun(network, student, source, recipe, teacher, divide, total)
    stop = min(math.ceil(total / per_epoch), math.inf if stop_epoch is None else stop_epoch)
    computed = training(network.device, recipe.precision)
    with seed.scope(), guarded(f"training network {network.source.name!r}", sown=True, mixed=True), computed:
        for epoch in range(first_epoch, int(stop)):
            step = epoch * per_epoch
            (seed / "epoch" / epoch).sow()
            for batch, drawn in at.planned(recipe.batches_of(epoch, source, rows)[: total - step]):
                if recipe.schedule == "step-restart" and step == recipe.half(total):
                    at.restart()
                at.step(batch, drawn, recipe.rate(step, total, lr or recipe.lr))
                step += 1
                if watch is not None and step in watch.steps:
                    watch.see(step, Student(*at.student()))
            if on_epoch is not None:
                on_epoch(epoch + 1, Student(*at.student()))
            if what is not None:
                report(what, step, min(total, int(stop) * per_epoch))
    return Student(*at.student())


def _begun(
    network: Network,
    student: Student,
    source: Source,
    recipe: Recipe,
    teacher: Labeller | None,
    divide: Divide | None,
    total: int,
) -> Apart | InPlace:
    """The steps of a training, before the first."""
    lessons = Lessons(recipe, teacher, fused=chosen(recipe.kernels, network.device))
    lessons.divided = divide(network, lessons) if divide else None
    kind = InPlace if lessons.divided is None and in_place(recipe, network, source, total) else Apart
    return kind(network, student.vector, student.state, source, lessons, recipe.rule(network))


class Lessons:
    """What a recipe makes of batches: drawn first, then augmented, mixed and labelled; and the loss to descend."""

    def __init__(self, recipe: Recipe, teacher: Labeller | None, *, fused: bool = False) -> None:
        if recipe.online and teacher is None:
            raise UsageError("batches are to be labelled online, but there is no teacher; use a recipe without online")
        self.recipe = recipe
        self.teacher = teacher
        self.fused = fused
        self.divided: Divided | None = None
        self.augment = DSA(recipe.augment)
        self.mixing = Mixing(recipe.mixing, recipe.mix_probability, recipe.mix_alpha)
        self.temperature = recipe.temperature if recipe.online else 1.0

    def draw(self, count: int) -> tuple[Draw, Mix]:
        """The augmentation and the mixture of a batch of ``count`` images, from torch's CPU generator."""
        return self.augment.draw(count), self.mixing.draw(count)

    def shown(self, batch: Examples, drawn: tuple[Draw, Mix]) -> Examples:
        """The batch as a student sees it."""
        augment, mix = drawn
        plain = augment(batch.images)
        images, labels = mix(plain, batch.labels)
        if self.recipe.online:
            assert self.teacher is not None
            logits = self.teacher(plain if self.recipe.unmixed else images)
            if self.recipe.loss == "logits":  # and the labels that the set has, of images that are not mixed
                return Examples(images, torch.cat([logits, batch.labels], 1))
            labels = (logits / self.temperature).softmax(1)
        return Examples(images, labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, both ``(n, k)``; ``(n, 2 k)`` labels are a teacher's logits and the set's labels."""
        if self.recipe.loss == "mse":
            return squared_error(logits, labels)
        if self.recipe.online and self.recipe.loss == "logits":  # as in G-VBSM: a mean over images and classes
            taught, labels = labels.chunk(2, 1)
            return (logits - taught).square().mean() + self.recipe.truth * soft_cross_entropy(logits, labels)
        return soft_cross_entropy(logits / self.temperature if self.temperature != 1 else logits, labels)

    def logits(self, network: Network, vector: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits ``(n, k)`` in training, at the recipe's precision, and the batch-norm buffers after this batch."""
        if self.recipe.precision != "bf16" and not self.fused:
            return network.apply_with_buffers(vector, images)
        with autocast(images.device, self.recipe.precision), fusing(self.fused):
            logits, after = network.apply_with_buffers(vector, images)
        return logits.to(images.dtype), after

    def gradient(self, network: Network, parameters: Tensor, buffers: Tensor, batch: Examples) -> tuple[Tensor, Tensor]:
        """The direction ``(p,)`` at ``parameters``, and the batch-norm buffers after this batch."""

        def at(theta: Tensor) -> tuple[Tensor, Tensor]:
            if self.divided is not None:
                return self.divided(theta, batch), buffers
            leaf = theta.requires_grad_()
            vector = torch.cat([leaf, buffers]) if len(buffers) else leaf
            logits, after = self.logits(network, vector, batch.images)
            return grad(self.loss(logits, batch.labels), leaf)[0], after

        g, after = at(parameters)
        if self.recipe.optimizer == "gsam":
            g = flat_gradient(parameters.detach(), g, lambda theta: at(theta)[0], self.recipe.rho, self.recipe.alpha)
        return g, after


def flat_gradient(theta: Tensor, g: Tensor, gradient: Callable[[Tensor], Tensor], rho: float, alpha: float) -> Tensor:
    """Adaptive GSAM: the gradient of the worst neighbour, less ``alpha`` times what ``g`` has orthogonal to it.

    ``g`` is the gradient at ``theta``, both ``(p,)``. The neighbour is theta + e with
    e = rho theta^2 g / | |theta| g |: ASAM's step of size ``rho`` in units of each weight. Descending against the
    orthogonal part of g raises no loss at the neighbour and narrows the gap between the two (GSAM). As in FTD's code.
    """
    e = rho * theta.square() * g / ((theta.abs() * g).norm() + 1e-12)
    worst = gradient(theta + e)
    direction = worst / (worst.norm() + 1e-12)
    return worst - alpha * (g - (g @ direction) * direction)


@torch.no_grad()
def predict(network: Network, vector: Tensor, data: RealData, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits ``(n, k)`` in evaluation mode, and targets ``(n,)``, of all of ``data``, on the CPU.

    ``size`` at a time: 1000, or fewer when images are large, since activations grow with their pixels.
    """
    size = size or max(1, min(1000, PIXELS_AT_ONCE // math.prod(data.shape)))
    with guarded(f"network {network.source.name!r}", mixed=True):
        logits = [network.apply(vector, batch.images, train=False).cpu() for batch in data.at_hand.batches(size)]
    return torch.cat(logits), data.targets
