"""How a trajectory matcher's images, labels and student lr move, once there is a gradient: the outer descent.

An iteration has a gradient for the images of its own batches only, and touches only these rows, so that it costs the
same however many images there are. What the others would have done meanwhile is made up for when they are read
(:func:`catch_up`): every rule below gives what it gives when all rows move in every iteration.

With g the gradient of an iteration, t the number of iterations, and mu = ``momentum``:

| ``outer`` | a pixel x |
| --- | --- |
| ``sgd`` | m <- mu m + g;  x <- x - lr_img m, as MTT and TESLA do |
| ``adam`` | Adam (Kingma & Ba, ICLR 2015) with beta_1 = mu and beta_2 = 0.999 |
| ``adam-mini`` | the same with one second moment for each image, the mean over its pixels (Zhang et al., ICLR 2025) |

With the last two, lr_img is about how far a pixel moves in an iteration, whatever the size of the gradients; with
``adam`` each pixel, also one that carries no signal, such as those of a black border; with ``adam-mini`` the root mean
square over an image's pixels, which move as far as their share of the gradient.

With ``schedule=cosine`` lr_img falls to zero over the N iterations of a stage, as half a cosine: iteration t = 0 .. N-1
has lr_img (1 + cos(pi t / N)) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ddbench.errors import DivergedError, UsageError
from ddbench.trajectory.unroll import Gradient

LABEL_MOMENTUM = 0.9  # outer momentum of learned label logits
BETA2 = 0.999
# Added to the root of Adam's second moment. Pixels' gradients are 1e-4 to 1e-9 here, so that
# Adam's usual 1e-8 would decide; this one only keeps zeros from being divided by zeros.
TINY = 1e-16
NOTHING = 1e-17  # what Adam's first moment still adds may be left out when it is below this share

Outer = Literal["sgd", "adam", "adam-mini"]
Schedule = Literal["constant", "cosine"]


class Moving(Protocol):
    """The options that say how images, labels and student lr move."""

    @property
    def outer(self) -> Outer: ...
    @property
    def lr_img(self) -> float: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def steps(self) -> int: ...
    @property
    def lr_lr(self) -> float: ...
    @property
    def lr_label(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def labels(self) -> str: ...


def check_outer(method: Moving) -> None:
    """Raise UsageError for a step size or momentum that no run of this outer optimiser can mean."""
    if method.outer != "sgd" and method.lr_img > 1:
        raise UsageError(
            f"with matcher.outer={method.outer} matcher.lr_img is how far a pixel moves in an iteration, in standard "
            f"deviations of real pixels: {method.lr_img:g} is too far; give at most 1, say -o matcher.lr_img=0.03"
        )
    if method.outer != "sgd" and method.momentum >= 1:
        raise UsageError(f"matcher.outer={method.outer} needs a matcher.momentum below 1, not {method.momentum:g}")


@dataclass
class PixelState:
    """Learned images ``(n, c, h, w)``, labels ``(n, k)`` and student lr, with their momenta.

    ``labels`` are probabilities, or logits when they are learned (only then they have a momentum). An iteration
    touches the rows of its own batches: ``seen`` ``(n,)`` counts the outer steps that each row has been brought
    up to, of ``steps`` in all, and :func:`catch_up` makes up for the rest. ``size`` is the running norm of
    the image gradient that clipping compares with. ``images_square`` is Adam's second moment, where there is one,
    ``(n, c, h, w)`` or ``(n, 1, 1, 1)``; ``lr_start`` the first student lr, where it was looked for.
    """

    images: Tensor
    labels: Tensor
    lr: Tensor  # 0-dim, float64: it moves by tiny relative steps
    images_momentum: Tensor
    labels_momentum: Tensor
    lr_momentum: Tensor
    seen: Tensor
    size: Tensor
    steps: int = 0
    images_square: Tensor | None = None
    lr_start: float | None = None  # beta_0, where it was found and not given

    def __post_init__(self) -> None:
        self.size = torch.as_tensor(self.size, dtype=torch.float64, device=self.images.device)  # once it was a float

    @classmethod
    def start(
        cls, images: Tensor, labels: Tensor, lr: float, *, learn_labels: bool = False, outer: Outer = "sgd"
    ) -> PixelState:
        """The state before the first step; takes ``images`` and ``labels`` over, which may be gigabytes."""
        rate = torch.tensor(lr, dtype=torch.float64, device=images.device)
        moving = torch.zeros_like(labels) if learn_labels else labels[:0].clone()
        seen = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        square = _square(images) if outer == "adam-mini" else torch.zeros_like(images) if outer == "adam" else None
        zero = torch.zeros_like(rate)
        return cls(images, labels, rate, torch.zeros_like(images), moving, zero, seen, zero.clone(), 0, square)


def catch_up(method: Moving, state: PixelState, rows: Tensor) -> None:
    """Make up, in place, for the steps in which ``rows`` ``(r,)`` had no gradient: lazy momentum.

    In j steps without a gradient, m <- mu m and x <- x - lr m add up to m <- mu^j m and
    x <- x - lr (mu + ... + mu^j) m. With this before a row is read, row-wise steps equal dense ones.
    """
    # rows that missed nothing go through unchanged: to leave them out, a GPU would have to tell which they are
    missed = (state.steps - state.seen[rows]).to(state.images.dtype)
    _coast_images(method, state, state.images, rows, missed)
    _fade(state.images_momentum, rows, missed, method.momentum)
    if state.images_square is not None:
        _fade(state.images_square, rows, missed, BETA2)
    if method.labels == "learned":
        _coast(state.labels, state.labels_momentum, rows, missed, LABEL_MOMENTUM, method.lr_label)
        _fade(state.labels_momentum, rows, missed, LABEL_MOMENTUM)
    state.seen[rows] = state.steps


def caught_up(method: Moving, state: PixelState) -> tuple[Tensor, Tensor]:
    """Copies of the images and labels, with all rows brought up to date."""
    images, labels = state.images.clone(), state.labels.clone()
    late = torch.nonzero(state.seen < state.steps).flatten()
    missed = (state.steps - state.seen[late]).to(images.dtype)
    _coast_images(method, state, images, late, missed)
    if method.labels == "learned":
        _coast(labels, state.labels_momentum, late, missed, LABEL_MOMENTUM, method.lr_label)
    return images, labels


def at_end(method: Moving, state: PixelState) -> tuple[Tensor, Tensor]:
    """The images and labels after the last iteration, those of the state itself, whose momentum is let go.

    The same numbers as :func:`caught_up`'s, in the memory of the images alone: copies and momentum are gigabytes.
    """
    catch_up(method, state, torch.nonzero(state.seen < state.steps).flatten())
    state.images_momentum = state.images_momentum[:0].clone()
    return state.images, state.labels


def descend(method: Moving, state: PixelState, rows: Tensor, gradient: Gradient) -> None:
    """One outer step, in place, on images, student lr and (when learned) label logits.

    ``rows`` ``(r,)`` are those of the state that the gradient's rows belong to; they must be up to date. The
    student lr and logits move by SGD with momentum, whatever ``outer`` says of the images.

    The student lr moves on a logarithmic scale, beta <- beta exp(-lr_lr m / beta), where m is the momentum
    of dL/dbeta: to first order the published step beta - lr_lr m, but it cannot reach zero. One step changes
    it by at most a tenth.
    """
    _move_images(method, state, rows, gradient.images)
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


def check_lr(lr: float, first: float) -> None:
    """Raise DivergedError when the student lr has died or run away."""
    if not 1e-4 * first <= lr <= 1e3 * first:
        raise DivergedError(
            f"the learned student lr went from {first:g} to {lr:g}; try a smaller matcher.lr_lr, "
            "a smaller matcher.lr_init, or fewer matcher.syn_steps"
        )


def softmax_pullback(logits: Tensor, gradient: Tensor) -> Tensor:
    """A gradient with respect to softmax(logits), pulled back to the logits; both ``(n, k)``."""
    p = logits.softmax(1)
    return p * (gradient - (p * gradient).sum(1, keepdim=True))


def _move_images(method: Moving, state: PixelState, rows: Tensor, found: Tensor) -> None:
    if method.clip is not None:
        found = _clipped(found, state, method.clip)
    held = state.images_momentum[rows].mul_(method.momentum)
    lr = method.lr_img * _left(method, state.steps)
    if state.images_square is None:
        held.add_(found)
        state.images[rows] = state.images[rows].sub_(held, alpha=lr)
    else:
        held.add_(found, alpha=1 - method.momentum)
        square = state.images_square[rows].mul_(BETA2)
        if state.images_square.shape == state.images.shape:
            square.addcmul_(found, found, value=1 - BETA2)
        else:
            square.add_(found.square().mean((1, 2, 3), keepdim=True), alpha=1 - BETA2)
        state.images_square[rows] = square
        t = state.steps + 1
        scale = (1 - BETA2**t) ** 0.5 / (1 - method.momentum**t)
        state.images[rows] = state.images[rows].addcdiv_(held, square.sqrt() + TINY, value=-lr * scale)
    state.images_momentum[rows] = held


def _left(method: Moving, t: int) -> float:
    """The share of ``lr_img`` that iteration ``t`` has."""
    return 1.0 if method.schedule == "constant" else (1 + math.cos(math.pi * t / method.steps)) / 2


def _square(images: Tensor) -> Tensor:
    """One second moment for each image, ``(n, 1, 1, 1)``."""
    return torch.zeros_like(images[:, :1, :1, :1])


def _coast_images(method: Moving, state: PixelState, images: Tensor, rows: Tensor, missed: Tensor) -> None:
    """Where ``rows`` of the images move without a gradient."""
    square, held = state.images_square, state.images_momentum
    if square is None and method.schedule == "constant":
        _coast(images, held, rows, missed, method.momentum, method.lr_img)
        return
    for part, steps in zip(rows.split(100), missed.split(100), strict=True):  # blocks: with terms for each iteration
        moved = _per_row(_coasted(method, steps, state.steps, adam=square is not None), images)
        direction = held[part] if square is None else held[part] / (square[part].sqrt() + TINY)
        images[part] -= method.lr_img * moved * direction


def _coasted(method: Moving, missed: Tensor, now: int, *, adam: bool) -> Tensor:
    """What j steps without a gradient, up to step ``now``, multiply m (or Adam's m / sqrt(v)) by, one factor per row.

    After i of them m is beta_1^i m, of Adam v is beta_2^i v, and t = now - j + i corrects their bias: the sum over i of
    (beta_1 / sqrt(beta_2))^i sqrt(1 - beta_2^t) / (1 - beta_1^t), each with the share of lr_img that is left.
    """
    most = now if missed.is_cuda or not len(missed) else int(missed.max())  # reading a number makes a GPU wait
    beta1 = method.momentum
    ratio = beta1 / BETA2**0.5 if adam else beta1
    longest = min(most, math.ceil(math.log(NOTHING) / math.log(ratio))) if 0 < ratio < 1 else most if ratio else 1
    i = torch.arange(1, longest + 1, dtype=torch.float64, device=missed.device)
    j = missed.double().unsqueeze(1)
    t = now - j + i  # (r, longest)
    terms = ratio**i * (1 - BETA2**t).sqrt() / (1 - beta1**t) if adam else (ratio**i).expand(len(j), -1)
    if method.schedule == "cosine":
        terms = terms * (1 + torch.cos(math.pi * (t - 1) / method.steps)) / 2
    return torch.where(i <= j, terms, 0.0).sum(1).to(missed.dtype)


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


def _clipped(images: Tensor, state: PixelState, clip: float) -> Tensor:
    """The gradient with its norm bounded by ``clip`` times the running mean of such norms.

    The exact gradient of a long unroll has rare, huge values; one of them undoes all the descent before.
    """
    norm, size = images.norm().double(), state.size
    bounded = torch.where(size > 0, torch.minimum(norm, clip * size), norm)
    state.size = torch.where(size > 0, 0.9 * size + 0.1 * bounded, bounded)
    return images * torch.where(norm > 0, bounded / norm, 1.0)
