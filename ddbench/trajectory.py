"""What all trajectory matchers share: options, segments of experts, the outer descent, labels from experts.

A trajectory matcher is a :class:`Method` with a way to differentiate the unroll; TESLA and MTT differ in nothing
else. Under a decoder, n images are stored and n copies are what students see: plans, batches and gradients are of
the latter, and what moves are the stored ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ddbench.augment import DSA
from ddbench.data import Examples
from ddbench.errors import DivergedError
from ddbench.problem import Needs, Problem
from ddbench.sets import Pool, SyntheticSet, targets
from ddbench.unroll import Gradient, Loss, Plan, Terminal, matching, student_loss
from ddbench.view import View, mean_of_copies

LABEL_MOMENTUM = 0.9  # outer momentum of learned label logits
SHARP = 10.0  # the logit of the true class when learned labels start from hard ones

# (loss, terminal, theta_0, pool, student lr, plan) -> gradients at the end of the unroll
Differentiate = Callable[[Loss, Terminal, Tensor, Pool, Tensor, Plan], Gradient]


@dataclass(frozen=True)
class Method:
    """The options of a trajectory matcher, by the names that recipes use, and how it works on a problem.

    A matcher adds a name, ``differentiate`` and options of its own; it says which ``labels`` and ``pix_init`` it has.
    Its state is a :class:`PixelState`, or holds one. ``batch_syn`` counts images as students see them, decoded.
    """

    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 500
    syn_steps: Annotated[int, Ge(1), "student steps per iteration, T"] = 10
    span: Annotated[int, Ge(1), "expert epochs between start and target, M"] = 2
    max_start: Annotated[int, Ge(1), "start epochs are drawn from 0..max_start-1"] = 10
    experts: Annotated[int, Ge(1), "expert trajectories"] = 10
    batch_syn: Annotated[int | None, Ge(1), "synthetic images per student step; none for all"] = None
    lr_img: Annotated[float, Gt(0), "outer learning rate of the images"] = 100.0
    lr_lr: Annotated[float, Ge(0), "outer learning rate of the student lr"] = 1e-5
    lr_label: Annotated[float, Ge(0), "outer learning rate of label logits (labels=learned)"] = 2.0
    lr_init: Annotated[float, Gt(0), "initial student lr, beta_0"] = 0.03
    momentum: Annotated[float, Ge(0), "outer momentum of images and student lr"] = 0.5
    labels: str = "hard"
    teacher_epochs: Annotated[int | None, Ge(1), "epochs of the experts that label; none: where segments end"] = None
    relabel: Annotated[bool, "teacher labels anew in every iteration, as TESLA's code does"] = False
    clip: Annotated[float | None, Gt(0), "bound of the image gradient, times its running mean"] = 2.0
    pix_init: str = "real"
    augment: Annotated[bool, "DSA in the student's steps"] = True

    def needs(self, problem: Problem) -> Needs:  # noqa: ARG002 - others ask what the problem has
        return needs(self)

    def init(self, problem: Problem) -> Any:
        return begin(self, problem, problem.sample())

    def step(self, problem: Problem, state: Any, k: int) -> tuple[Any, dict[str, float | Tensor]]:
        return advance(self, problem, state, k, self.differentiate)

    def differentiate(
        self, loss: Loss, terminal: Terminal, start: Tensor, pool: Pool, lr: Tensor, plan: Plan
    ) -> Gradient:
        """The gradients of an unroll as this method takes them; what ``ddbench check-grad`` examines."""
        raise NotImplementedError

    def result(self, problem: Problem, state: Any) -> SyntheticSet:
        return finish(self, problem, state)


@dataclass
class PixelState:
    """Learned images ``(n, c, h, w)``, labels ``(n, k)`` and student lr, with their momenta.

    ``labels`` are probabilities, or logits when they are learned (only then they have a momentum). An iteration
    touches the rows of its own batches: ``seen`` ``(n,)`` counts the outer steps that each row has been brought
    up to, of ``steps`` in all, and :func:`catch_up` makes up for the rest. ``size`` is the running norm of
    the image gradient that clipping compares with.
    """

    images: Tensor
    labels: Tensor
    lr: Tensor  # 0-dim, float64: it moves by tiny relative steps
    images_momentum: Tensor
    labels_momentum: Tensor
    lr_momentum: Tensor
    seen: Tensor
    steps: int = 0
    size: float = 0.0

    @classmethod
    def start(cls, images: Tensor, labels: Tensor, lr: float, *, learn_labels: bool = False) -> PixelState:
        """The state before the first step; takes ``images`` and ``labels`` over, which may be gigabytes."""
        rate = torch.tensor(lr, dtype=torch.float64, device=images.device)
        moving = torch.zeros_like(labels) if learn_labels else labels[:0].clone()
        seen = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return cls(images, labels, rate, torch.zeros_like(images), moving, torch.zeros_like(rate), seen)


def needs(method: Method, starts: range | None = None) -> Needs:
    """The experts of a trajectory matcher, with the snapshots at which a segment may begin (``starts``) or end."""
    starts = starts or range(method.max_start)
    epochs = {*starts, *(s + method.span for s in starts)}
    if method.labels == "teacher":
        epochs.add(_teacher_epoch(method))
    return Needs(method.experts, tuple(sorted(epochs)))


def _teacher_epoch(method: Method) -> int:
    return method.teacher_epochs or method.max_start - 1 + method.span


def begin(method: Method, problem: Problem, examples: Examples, logits: Tensor | None = None) -> PixelState:
    """Stored real images (or noise) with their labels.

    Learned labels start as ``logits`` ``(n, k)``, by default sharp ones of the true class.
    """
    labels = examples.labels
    if method.labels == "teacher":
        labels = ensemble_labels(method, problem, examples.images)
    elif method.labels == "learned":
        labels = labels * SHARP if logits is None else logits
    images = torch.randn_like(examples.images) if method.pix_init == "noise" else examples.images
    return PixelState.start(images, labels, method.lr_init, learn_labels=method.labels == "learned")


def advance(
    method: Method,
    problem: Problem,
    state: PixelState,
    k: int,
    differentiate: Differentiate,
    starts: range | None = None,
    threshold: float | None = None,
) -> tuple[PixelState, dict[str, float | Tensor]]:
    """One iteration: draw a segment and a student's plan, differentiate, descend.

    Of the new images and labels only the rows in the plan's batches are read, labelled and moved, so that an
    iteration costs the same however many images there are. ``starts`` are the epochs at which the segment may begin.
    Above ``threshold`` a loss (one that is not a number, too) moves nothing: neither values nor momenta.
    """
    starts = starts or range(method.max_start)
    expert, epoch = int(torch.randint(method.experts, ())), int(torch.randint(starts.start, starts.stop, ()))
    start, target = problem.experts.segment(expert, epoch, method.span)  # theta*_s, theta*_{s+M}
    frozen = sum(len(s) * s.decoder.copies for s in problem.frozen.sets)
    dsa = problem.dsa if method.augment else DSA()
    shown = len(state.images) * problem.decoder.copies
    plan = Plan.draw(frozen + shown, method.syn_steps, method.batch_syn, dsa)
    seen, plan = plan.compact(frozen)
    view = View.of(problem.decoder, seen.to(state.images.device))
    catch_up(method, state, view.rows)
    images, labels = state.images[view.rows], state.labels[view.rows]
    if method.labels == "learned":
        labels = targets(labels, "logit")
    elif method.labels == "teacher" and method.relabel:
        teacher = problem.experts.snapshot(expert, epoch + method.span)
        decoded = teacher_labels(problem, problem.decoder(images), teacher, _at_once(method))
        labels = mean_of_copies(decoded, problem.decoder)
    pool = problem.frozen.pool(view.images(images), view.labels(labels))
    loss = student_loss(problem.network, buffers(problem, expert, epoch))
    gradient = differentiate(loss, matching(start, target), start, pool, state.lr.to(start.dtype), plan)
    skipped = threshold is not None and not float(gradient.loss) <= threshold
    if not skipped:
        descend(method, state, view.rows, view.pull(images, gradient))
    if k % 10 == 9:  # not every step: reading a number makes a GPU wait
        check_lr(float(state.lr), method.lr_init)
    numbers: dict[str, float | Tensor] = {"loss": gradient.loss, "lr": state.lr.clone()}
    return state, numbers if threshold is None else numbers | {"skipped": float(skipped)}


def finish(method: Method, problem: Problem, state: PixelState) -> SyntheticSet:
    """The state as a set, with the labels to store; all rows brought up to date, in copies."""
    learned = method.labels == "learned"
    images, labels = state.images.clone(), state.labels.clone()
    late = torch.nonzero(state.seen < state.steps).flatten()
    missed = (state.steps - state.seen[late]).to(images.dtype)
    _coast(images, state.images_momentum, late, missed, method.momentum, method.lr_img)
    if learned:
        _coast(labels, state.labels_momentum, late, missed, LABEL_MOMENTUM, method.lr_label)
    if method.labels == "teacher" and method.relabel:
        labels = ensemble_labels(method, problem, images)
    return SyntheticSet(images, labels, float(state.lr), "logit" if learned else "probability", method.labels)


def buffers(problem: Problem, expert: int, epoch: int) -> Tensor:
    """The batch-norm buffers of an expert's snapshot; empty for networks without."""
    if problem.network.length == problem.network.parameters:
        return torch.empty(0, device=problem.network.device)  # nothing to read from the file, in every step
    return problem.experts.snapshot(expert, epoch)[problem.network.parameters :]


@torch.no_grad()
def teacher_labels(problem: Problem, images: Tensor, vector: Tensor, batch: int = 256) -> Tensor:
    """Probabilities ``(n, k)`` that the network ``vector`` gives to images, in evaluation mode, ``batch`` at a time."""
    parts = [problem.network.apply(vector, part, train=False).softmax(1) for part in images.split(batch)]
    return torch.cat(parts)


def ensemble_labels(method: Method, problem: Problem, images: Tensor) -> Tensor:
    """The mean prediction ``(n, k)`` of all experts, after ``teacher_epochs`` or where the last segment ends.

    That of a stored image is the mean over those that it decodes to. A function of images and experts alone. The
    released TESLA stores the predictions of whichever segment its last iteration happened to draw.
    """
    at_once = _at_once(method)

    def labelled(stored: Tensor) -> Tensor:
        decoded = problem.decoder(stored)
        made = mean_labels(problem, decoded, method.experts, _teacher_epoch(method), at_once)
        return mean_of_copies(made, problem.decoder)

    return torch.cat([labelled(part) for part in images.split(32 * at_once)])  # decoded, all may be gigabytes


def _at_once(method: Method) -> int:
    """Images per forward pass: no more than the student's step takes, whose graph is larger."""
    return method.batch_syn or 256


def mean_labels(problem: Problem, images: Tensor, experts: int, epoch: int, batch: int = 256) -> Tensor:
    """The mean over the first ``experts`` of their predictions ``(n, k)`` after ``epoch`` epochs."""
    total = torch.zeros(len(images), problem.classes, dtype=images.dtype, device=images.device)
    for i in range(experts):  # one after the other: at 1000 classes the labels of 50,000 images are 200 MB
        total += teacher_labels(problem, images, problem.experts.snapshot(i, epoch), batch)
    return total / experts


def softmax_pullback(logits: Tensor, gradient: Tensor) -> Tensor:
    """A gradient with respect to softmax(logits), pulled back to the logits; both ``(n, k)``."""
    p = logits.softmax(1)
    return p * (gradient - (p * gradient).sum(1, keepdim=True))


def catch_up(method: Method, state: PixelState, rows: Tensor) -> None:
    """Make up, in place, for the steps in which ``rows`` ``(r,)`` had no gradient: lazy momentum.

    In j steps without a gradient, m <- mu m and x <- x - lr m add up to m <- mu^j m and
    x <- x - lr (mu + ... + mu^j) m. With this before a row is read, row-wise steps equal dense SGD.
    """
    # rows that missed nothing go through unchanged: to leave them out, a GPU would have to tell which they are
    missed = (state.steps - state.seen[rows]).to(state.images.dtype)
    _coast(state.images, state.images_momentum, rows, missed, method.momentum, method.lr_img)
    _fade(state.images_momentum, rows, missed, method.momentum)
    if method.labels == "learned":
        _coast(state.labels, state.labels_momentum, rows, missed, LABEL_MOMENTUM, method.lr_label)
        _fade(state.labels_momentum, rows, missed, LABEL_MOMENTUM)
    state.seen[rows] = state.steps


def _coast(values: Tensor, momentum: Tensor, rows: Tensor, missed: Tensor, mu: float, lr: float) -> None:
    """x <- x - lr (mu + ... + mu^j) m for ``rows`` that missed j steps."""
    for part, steps in zip(rows.split(1000), missed.split(1000), strict=True):  # blocks: there may be gigabytes
        moved = steps if mu == 1 else mu * (1 - mu**steps) / (1 - mu)
        values[part] -= lr * _per_row(moved, values) * momentum[part]


def _fade(momentum: Tensor, rows: Tensor, missed: Tensor, mu: float) -> None:
    """m <- mu^j m."""
    for part, steps in zip(rows.split(1000), missed.split(1000), strict=True):
        momentum[part] *= _per_row(mu**steps, momentum)


def _per_row(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (like.ndim - 1))


def descend(method: Method, state: PixelState, rows: Tensor, gradient: Gradient) -> None:
    """One outer step, in place: SGD with momentum on images, student lr and (when learned) label logits.

    ``rows`` ``(r,)`` are those of the state that the gradient's rows belong to; they must be up to date.

    The student lr moves on a logarithmic scale, beta <- beta exp(-lr_lr m / beta), where m is the momentum
    of dL/dbeta: to first order the published step beta - lr_lr m, but it cannot reach zero. One step changes
    it by at most a tenth.
    """
    images = gradient.images if method.clip is None else _clipped(gradient.images, state, method.clip)
    held = state.images_momentum[rows].mul_(method.momentum).add_(images)
    state.images_momentum[rows] = held
    state.images[rows] = state.images[rows].sub_(held, alpha=method.lr_img)
    state.lr_momentum.mul_(method.momentum).add_(gradient.lr)
    exponent = (-method.lr_lr * state.lr_momentum / state.lr).clamp(-0.1, 0.1)
    state.lr.mul_(exponent.exp())
    if method.labels == "learned":
        logits = state.labels[rows]
        held = state.labels_momentum[rows].mul_(LABEL_MOMENTUM).add_(softmax_pullback(logits, gradient.labels))
        state.labels_momentum[rows] = held
        state.labels[rows] = logits.sub_(held, alpha=method.lr_label)
    state.steps += 1
    state.seen[rows] = state.steps


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
