"""RaT-BPTT: the images after whose lesson a student does well on real data.

Feng, Vedantam & Kempe, "Embarrassingly Simple Dataset Distillation", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.autograd import grad

from ddbench import DivergedError, Examples, Problem, Published, SyntheticSet, UsageError
from ddbench.train.compile import Kind, settle, verdicts
from ddbench.train.optimisers import SGD, Adam, Optimiser
from ddbench.train.optimisers import State as Moments
from ddbench.trajectory.engine import Engine
from ddbench.trajectory.student_lr import AUTO, SEGMENTS, least
from ddbench.trajectory.unroll import Gradient, Loss, Plan, Pool, Terminal, play, reverse, student_loss
from ddbench_meta.common import real_batch

OUTER = Adam()


@dataclass
class State:
    """Learned images ``(n, c, h, w)``, labels ``(n, k)`` and log student lr, each with Adam's moments.

    What is not learned has no moments. ``norm`` is the running norm of the image gradient that clipping compares
    with; 0 before the first step.
    """

    images: Tensor
    labels: Tensor
    log_lr: Tensor  # 0-dim, float64
    images_moments: Moments
    labels_moments: Moments
    lr_moments: Moments
    norm: Tensor  # 0-dim
    lr_start: float | None = None  # the first student lr, where it was found and not given


@dataclass(frozen=True)
class RatBptt:
    """Backpropagation through a student's training, truncated to a random window of its steps.

    | paper | here |
    | --- | --- |
    | U, the synthetic set | the images of this stage, and the frozen ones, which do not move |
    | T, M | ``total``, ``window``: the longest unroll, and how many of its last steps are differentiated |
    | N | the unroll's length, uniform in ``window`` .. ``total``, drawn anew in every iteration |
    | L(theta_N(U), D) | cross entropy of the trained student on ``batch_real`` real images |
    | alpha, eta | ``lr_init``, the student's lr; ``lr_img``, that of Adam on the images |

    The gradient is exact within the window and takes its first parameters (and Adam's moments there) as constants:
    :func:`~ddbench.trajectory.unroll.reverse`, in the memory of one student step. The released code keeps the
    graphs of the whole window, and draws N once per pass over the real data; here, as in the paper, once per iteration.

    The image gradient's norm is bounded by ``clip`` times its running mean. The released code puts the raw norm into
    that mean before it compares, so that a norm 1000 times too large lifts its own bound a hundredfold; here the mean
    is over bounded norms.

    ``labels="learned"`` moves label rows by Adam, too, and projects them on the probabilities; the released code cuts
    off what is negative but lets rows have any sum. ``lr_lr`` above 0 learns the log of the student lr, which the
    paper keeps fixed. ``optimizer="sgd"`` (momentum 0.9, weight decay 5e-4) is the other inner optimiser of the
    released code; students of the default protocol are trained like that, so the set then recommends its lr.
    """

    name = "rat-bptt"
    paper = "Feng, Vedantam & Kempe, ICLR 2024"
    paper_url = "https://arxiv.org/abs/2311.07025"
    published = (Published("RaT-BPTT"),)
    decodes = divides = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 300
    total: Annotated[int, Ge(1), "longest student training, in steps, T"] = 40
    window: Annotated[int, Ge(1), "last steps of the student that are differentiated, M"] = 15
    batch_syn: Annotated[int | None, Ge(1), "synthetic images per student step; none for all"] = None
    batch_real: Annotated[int, Ge(1), "real images of the loss at the end"] = 256
    optimizer: Annotated[Literal["adam", "sgd"], "the student's optimiser"] = "adam"
    lr_init: Annotated[
        Annotated[float, Gt(0)] | Literal["auto"],
        "the student's lr (its first value, when it is learned); auto: of least loss before the first iteration",
    ] = 0.005
    lr_lr: Annotated[float, Ge(0), "outer learning rate of the log student lr; 0 keeps it as it is"] = 0.0
    lr_img: Annotated[float, Gt(0), "outer learning rate of the images"] = 0.03
    lr_label: Annotated[float, Ge(0), "outer learning rate of labels (labels=learned)"] = 0.01
    clip: Annotated[float | None, Gt(0), "bound of the image gradient, times its running mean"] = 2.0
    labels: Annotated[Literal["hard", "learned"], "what the images are labelled with"] = "hard"
    pix_init: Annotated[Literal["noise", "real"], "where the images start; noise has norm 1"] = "noise"
    augment: Annotated[str, "strategy in the student's steps; 'dataset' for the dataset's own, '' for none"] = "dataset"
    augment_real: Annotated[str, "strategy on the real batch; 'dataset' for the dataset's own, '' for none"] = ""
    engine: Annotated[Kind, "compile student steps: where it pays (auto), never, or always"] = "auto"

    def __post_init__(self) -> None:
        if self.window > self.total:
            raise UsageError(
                f"a window of {self.window} steps does not fit into an unroll of {self.total}; "
                f"set matcher.total to {self.window} or more"
            )
        if self.lr_init == AUTO and self.pix_init == "noise":
            raise UsageError(
                "matcher.lr_init=auto asks what a student of the first images knows, and noise teaches nothing: "
                "give a number, say -o matcher.lr_init=0.005, or start from -o matcher.pix_init=real"
            )

    def notes(self) -> dict[str, Any]:
        """How student steps were compiled in this stage."""
        return verdicts()

    def resume(self, notes: dict[str, Any]) -> None:
        """Hold to what an interrupted stage began with."""
        settle(notes)

    def init(self, problem: Problem) -> State:
        """Noise of norm 1 per image (or real images) with hard labels."""
        examples = problem.sample()
        images = examples.images
        if self.pix_init == "noise":
            images = torch.randn_like(images)
            images = images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        start = least(self.taught(problem, examples)) if self.lr_init == AUTO else self.lr_init
        log_lr = torch.tensor(start, dtype=torch.float64, device=images.device).log()
        return State(
            images,
            examples.labels,
            log_lr,
            OUTER.init(images),
            OUTER.init(examples.labels) if self.labels == "learned" else (),
            OUTER.init(log_lr) if self.lr_lr else (),
            torch.zeros((), device=images.device),
            start if self.lr_init == AUTO else None,
        )

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Train a fresh student on the set, and descend along the gradient of its loss on a real batch."""
        length = int(torch.randint(self.window, self.total + 1, ()))
        return self.moved(state, self._gradient(problem, state, length), k)

    def moved(self, state: State, gradient: Gradient, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """The state after a step of the outer optimiser along a gradient, in place, and the numbers to report."""
        images, state.norm = _bounded(gradient.images, state.norm, self.clip)
        state.images, state.images_moments = OUTER.update(state.images, state.images_moments, images, self.lr_img)
        if self.labels == "learned":
            labels, state.labels_moments = OUTER.update(
                state.labels, state.labels_moments, gradient.labels, self.lr_label
            )
            state.labels = on_simplex(labels)
        lr = state.log_lr.exp()
        if self.lr_lr:
            slope = gradient.lr.to(lr.dtype) * lr  # dL/d log lr
            state.log_lr, state.lr_moments = OUTER.update(state.log_lr, state.lr_moments, slope, self.lr_lr)
            if k % 10 == 9:  # not every step: reading a number makes a GPU wait
                _check_lr(float(state.log_lr.exp()), self._first(state))
        found = {"lr_init": self._first(state)} if self.lr_init == AUTO and k == 0 else {}
        return state, {"loss": gradient.loss, "lr": lr, **found}

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        """The set; a student lr of SGD is recommended, one of Adam says nothing about the students to come."""
        lr = float(state.log_lr.exp()) if self.lr_lr else self._first(state)  # exactly: grids are compared with it
        lr = lr if self.optimizer == "sgd" else None
        return SyntheticSet(state.images.clone(), state.labels.clone(), lr, label_type=self.labels)

    def taught(self, problem: Problem, examples: Examples) -> Callable[[float], float]:
        """The mean loss on real data of a few students after ``total`` steps on ``examples``, by their lr; drawn here.

        Raises nothing for a student that runs away: its loss is infinite or no number.
        """
        pool = problem.frozen.pool(problem.decoder(examples.images), problem.decoder.labels(examples.labels))
        drawn = [self._lesson(problem, pool, self.total) for _ in range(SEGMENTS)]

        def mean_loss(lr: float) -> float:
            total = 0.0
            for loss, terminal, start, plan in drawn:
                total += float(terminal(play(loss, start, pool, start.new_tensor(lr), plan, self._rule)))
            return total / len(drawn)

        return mean_loss

    def unrolled(
        self, problem: Problem, images: Tensor, labels: Tensor, lr: Tensor, length: int, window: int | None = None
    ) -> Gradient:
        """The gradients by decoded ``images``, their ``labels`` and ``lr`` after ``length`` steps of a student.

        The last ``window`` of them are differentiated, by default as many as the method says.
        """
        pool = problem.frozen.pool(images, labels)
        loss, terminal, start, plan = self._lesson(problem, pool, length)
        rate = lr.to(start.dtype)
        mean = (self.window + self.total) // 2  # lengths are drawn from this range
        engine = Engine(self.engine, steps=self.steps * mean)
        window = self.window if window is None else window
        return reverse(loss, terminal, start, pool, rate, plan, optimiser=self._rule, window=window, engine=engine)

    def _lesson(self, problem: Problem, pool: Pool, length: int) -> tuple[Loss, Terminal, Tensor, Plan]:
        """A fresh student's loss and first parameters, its ``length`` batches, and the loss on real data at its end."""
        p = problem.network.parameters
        start, buffers = problem.starts.draw().split([p, problem.network.length - p])
        loss = student_loss(problem.network, buffers)
        plan = Plan.draw(len(pool), length, self.batch_syn, problem.strategy(self.augment))
        real = real_batch(problem, self.batch_real)
        shown = problem.strategy(self.augment_real).draw(len(real))(real.images)
        return loss, lambda theta: loss(theta, shown, real.labels), start, plan

    def _first(self, state: State) -> float:
        return self.lr_init if self.lr_init != AUTO else state.lr_start or 1.0

    @property
    def _rule(self) -> Optimiser:
        return Adam() if self.optimizer == "adam" else SGD(momentum=0.9, weight_decay=5e-4)

    def _gradient(self, problem: Problem, state: State, length: int, window: int | None = None) -> Gradient:
        """Of the stored images and labels: through the decoder, if there is one."""
        images, labels = state.images.clone().requires_grad_(), state.labels.clone().requires_grad_()
        shown, told = problem.decoder(images), problem.decoder.labels(labels)
        found = self.unrolled(problem, shown.detach(), told.detach(), state.log_lr.exp(), length, window)
        by_images, by_labels = grad([shown, told], [images, labels], [found.images, found.labels])
        return Gradient(found.loss, by_images, by_labels, found.lr, found.end)


def _check_lr(lr: float, first: float) -> None:
    if not 1e-3 * first <= lr <= 1e3 * first:
        raise DivergedError(f"the learned student lr went from {first:g} to {lr:g}; try a smaller matcher.lr_lr, or 0")


def _bounded(gradient: Tensor, norm: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """The gradient with its norm at most ``clip`` times the running mean ``norm`` (0-dim), and the next mean."""
    if clip is None:
        return gradient, norm
    size = gradient.norm()
    bounded = torch.where(norm > 0, size.minimum(clip * norm), size)
    scaled = gradient * torch.where(size > 0, bounded / size, 1.0)
    return scaled, torch.where(norm > 0, 0.9 * norm + 0.1 * bounded, bounded)


def on_simplex(rows: Tensor) -> Tensor:
    """The nearest probabilities to each of ``rows`` ``(n, k)`` (Duchi et al., ICML 2008, figure 1)."""
    ordered = rows.sort(dim=1, descending=True).values
    surplus = ordered.cumsum(1) - 1
    ranks = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    kept = (ordered * ranks > surplus).sum(1, keepdim=True)  # at least the largest
    return (rows - surplus.gather(1, kept - 1) / kept).clamp_min(0)
