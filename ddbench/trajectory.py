"""What all trajectory matchers share: segments of experts, the outer descent, labels from experts.

A trajectory matcher is a :class:`Method` (its options) with a way to differentiate the unroll; TESLA and
MTT differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddbench.augment import DSA
from ddbench.errors import DivergedError
from ddbench.problem import Needs, Problem
from ddbench.sets import Pool, SyntheticSet, targets
from ddbench.unroll import Gradient, Loss, Plan, Terminal, matching, student_loss

SHARP = 10.0  # the logit of the true class when learned labels start from hard ones

# (loss, terminal, theta_0, pool, student lr, plan) -> gradients at the end of the unroll
Differentiate = Callable[[Loss, Terminal, Tensor, Pool, Tensor, Plan], Gradient]


class Method(Protocol):
    """The options of a trajectory matcher, by the names that recipes use."""

    @property
    def syn_steps(self) -> int: ...
    @property
    def span(self) -> int: ...
    @property
    def max_start(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def batch_syn(self) -> int | None: ...
    @property
    def lr_img(self) -> float: ...
    @property
    def lr_lr(self) -> float: ...
    @property
    def lr_label(self) -> float: ...
    @property
    def lr_init(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def labels(self) -> str: ...
    @property
    def teacher_epochs(self) -> int | None: ...
    @property
    def relabel(self) -> bool: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def pix_init(self) -> str: ...
    @property
    def augment(self) -> bool: ...


@dataclass
class PixelState:
    """Learned images ``(n, c, h, w)``, labels ``(n, k)`` and student lr, with their momenta.

    ``labels`` are probabilities, or logits when they are learned; ``size`` is the running norm of the
    image gradient that clipping compares with.
    """

    images: Tensor
    labels: Tensor
    lr: Tensor  # 0-dim, float64: it moves by tiny relative steps
    images_momentum: Tensor
    labels_momentum: Tensor
    lr_momentum: Tensor
    size: float = 0.0

    @classmethod
    def start(cls, images: Tensor, labels: Tensor, lr: float) -> PixelState:
        rate = torch.tensor(lr, dtype=torch.float64, device=images.device)
        zeros = torch.zeros_like
        return cls(images.clone(), labels.clone(), rate, zeros(images), zeros(labels), zeros(rate))


def needs(method: Method) -> Needs:
    """The experts of a trajectory matcher, with the snapshots at which a segment may begin or end."""
    starts = range(method.max_start)
    epochs = {*starts, *(s + method.span for s in starts)}
    if method.labels == "teacher":
        epochs.add(_teacher_epoch(method))
    return Needs(method.experts, tuple(sorted(epochs)))


def _teacher_epoch(method: Method) -> int:
    return method.teacher_epochs or method.max_start - 1 + method.span


def begin(method: Method, problem: Problem) -> PixelState:
    """Real images (or noise) with their labels; learned labels start as sharp logits of the true class."""
    examples = problem.sample()
    labels = examples.labels
    if method.labels == "teacher":
        labels = ensemble_labels(method, problem, examples.images)
    elif method.labels == "learned":
        labels = labels * SHARP
    images = torch.randn_like(examples.images) if method.pix_init == "noise" else examples.images
    return PixelState.start(images, labels, method.lr_init)


def advance(
    method: Method, problem: Problem, state: PixelState, k: int, differentiate: Differentiate
) -> tuple[PixelState, dict[str, float | Tensor]]:
    """One iteration: draw a segment and a student's plan, differentiate, descend."""
    expert, epoch = int(torch.randint(method.experts, ())), int(torch.randint(method.max_start, ()))
    start, target = problem.experts.segment(expert, epoch, method.span)  # theta*_s, theta*_{s+M}
    kind = "logit" if method.labels == "learned" else "probability"
    labels = targets(state.labels, kind)
    if method.labels == "teacher" and method.relabel:
        labels = teacher_labels(problem, state.images, problem.experts.snapshot(expert, epoch + method.span))
    pool = problem.frozen.pool(state.images, labels)
    plan = Plan.draw(len(pool), method.syn_steps, method.batch_syn, problem.dsa if method.augment else DSA())
    loss = student_loss(problem.network, buffers(problem, expert, epoch))
    gradient = differentiate(loss, matching(start, target), start, pool, state.lr.to(start.dtype), plan)
    descend(method, state, gradient)
    if k % 10 == 9:  # not every step: reading a number makes a GPU wait
        check_lr(float(state.lr), method.lr_init)
    return state, {"loss": gradient.loss, "lr": state.lr.clone()}


def finish(method: Method, problem: Problem, state: PixelState) -> SyntheticSet:
    """The state as a set, with the labels to store."""
    labels = state.labels
    if method.labels == "teacher" and method.relabel:
        labels = ensemble_labels(method, problem, state.images)
    kind = "logit" if method.labels == "learned" else "probability"
    return SyntheticSet(state.images.clone(), labels.clone(), float(state.lr), kind, method.labels)


def buffers(problem: Problem, expert: int, epoch: int) -> Tensor:
    """The batch-norm buffers of an expert's snapshot; empty for networks without."""
    if problem.network.length == problem.network.parameters:
        return torch.empty(0, device=problem.network.device)  # nothing to read from the file, in every step
    return problem.experts.snapshot(expert, epoch)[problem.network.parameters :]


@torch.no_grad()
def teacher_labels(problem: Problem, images: Tensor, vector: Tensor, batch: int = 1000) -> Tensor:
    """Probabilities ``(n, k)`` that the network ``vector`` gives to images, in evaluation mode."""
    parts = [problem.network.apply(vector, part, train=False).softmax(1) for part in images.split(batch)]
    return torch.cat(parts)


def ensemble_labels(method: Method, problem: Problem, images: Tensor) -> Tensor:
    """The mean prediction ``(n, k)`` of all experts, after ``teacher_epochs`` or where the last segment ends.

    A function of images and experts alone. The released TESLA stores the predictions of whichever segment
    its last iteration happened to draw.
    """
    epoch = _teacher_epoch(method)
    predictions = [teacher_labels(problem, images, problem.experts.snapshot(i, epoch)) for i in range(method.experts)]
    return torch.stack(predictions).mean(0)


def softmax_pullback(logits: Tensor, gradient: Tensor) -> Tensor:
    """A gradient with respect to softmax(logits), pulled back to the logits; both ``(n, k)``."""
    p = logits.softmax(1)
    return p * (gradient - (p * gradient).sum(1, keepdim=True))


def descend(method: Method, state: PixelState, gradient: Gradient) -> None:
    """One outer step, in place: SGD with momentum on images, student lr and (when learned) label logits.

    The student lr moves on a logarithmic scale, beta <- beta exp(-lr_lr m / beta), where m is the momentum
    of dL/dbeta: to first order the published step beta - lr_lr m, but it cannot reach zero. One step changes
    it by at most a tenth.
    """
    images = gradient.images if method.clip is None else _clipped(gradient.images, state, method.clip)
    state.images_momentum.mul_(method.momentum).add_(images)
    state.images.sub_(state.images_momentum, alpha=method.lr_img)
    state.lr_momentum.mul_(method.momentum).add_(gradient.lr)
    exponent = (-method.lr_lr * state.lr_momentum / state.lr).clamp(-0.1, 0.1)
    state.lr.mul_(exponent.exp())
    if method.labels == "learned":
        pulled = softmax_pullback(state.labels, gradient.labels)
        state.labels_momentum.mul_(0.9).add_(pulled)
        state.labels.sub_(state.labels_momentum, alpha=method.lr_label)


def _clipped(images: Tensor, state: PixelState, clip: float) -> Tensor:
    """The gradient with its norm bounded by ``clip`` times the running mean of such norms.

    The exact gradient of a long unroll has rare, huge values; one of them undoes all the descent before.
    """
    norm = float(images.norm())
    bounded = min(norm, clip * state.size) if state.size else norm
    state.size = 0.9 * state.size + 0.1 * bounded if state.size else bounded
    return images * (bounded / norm) if norm > 0 else images


def check_lr(lr: float, first: float) -> None:
    """Raise DivergedError when the student lr has died or run away."""
    if not 1e-4 * first <= lr <= 1e3 * first:
        raise DivergedError(
            f"the learned student lr went from {first:g} to {lr:g}; try a smaller matcher.lr_lr, "
            "a smaller matcher.lr_init, or fewer matcher.syn_steps"
        )
