"""What all trajectory matchers share: options, segments of experts, an iteration, labels from experts.

A trajectory matcher is a :class:`Method` with a way to differentiate the unroll; TESLA and MTT differ in nothing
else. Under a decoder, n images are stored and n copies are what students see: plans, batches and gradients are of
the latter, and what moves are the stored ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ddbench.data.augment import DSA
from ddbench.data.dataset import Examples
from ddbench.errors import UsageError
from ddbench.problem.labels import mean_labels, teacher_labels
from ddbench.problem.problem import Needs, Problem
from ddbench.problem.synthetic import Pool, SyntheticSet, targets
from ddbench.train.compile import Kind
from ddbench.train.fit import Recipe
from ddbench.train.fit_together import trains_together
from ddbench.train.precision import Precision
from ddbench.trajectory.decoded import View, mean_of_copies
from ddbench.trajectory.descent import Outer, PixelState, catch_up, caught_up, check_lr, check_outer, descend
from ddbench.trajectory.engine import Engine, Probe
from ddbench.trajectory.stacking import Task, stacked
from ddbench.trajectory.unroll import Curvature, Gradient, Loss, Plan, Terminal, matching, reverse, student_loss

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
    segments: Annotated[int, Ge(1), "segments whose mean gradient an iteration descends"] = 1
    stacked: Annotated[bool | None, "differentiate segments by one vectorised unroll; none: on CUDA"] = None
    outer: Annotated[Outer, "what moves the images: SGD, Adam, or SGD on normalised gradients"] = "sgd"
    lr_img: Annotated[float, Gt(0), "outer learning rate of the images"] = 100.0
    lr_lr: Annotated[float, Ge(0), "outer learning rate of the student lr"] = 1e-5
    lr_label: Annotated[float, Ge(0), "outer learning rate of label logits (labels=learned)"] = 2.0
    lr_init: Annotated[float, Gt(0), "initial student lr, beta_0"] = 0.03
    momentum: Annotated[float, Ge(0), "outer momentum of images (Adam's beta_1) and student lr"] = 0.5
    labels: str = "hard"
    teacher_epochs: Annotated[int | None, Ge(1), "epochs of the experts that label; none: where segments end"] = None
    relabel: Annotated[bool, "teacher labels anew in every iteration, as TESLA's code does"] = False
    clip: Annotated[
        float | None, Gt(0), "bound of the image gradient, times its running mean; not with outer=normalised"
    ] = 2.0
    pix_init: str = "real"
    augment: Annotated[bool, "DSA in the student's steps"] = True

    def __post_init__(self) -> None:
        check_outer(self)
        apart = _why_apart(self)
        if self.stacked and self.segments > 1 and apart:
            raise UsageError(
                f"segments cannot be stacked with {apart}; leave matcher.stacked alone, or set it to false"
            )

    def needs(self, problem: Problem) -> Needs:  # noqa: ARG002 - others ask what the problem has
        return needs(self)

    def init(self, problem: Problem) -> Any:
        return begin(self, problem, problem.sample())

    def step(self, problem: Problem, state: Any, k: int) -> tuple[Any, dict[str, float | Tensor]]:
        return advance(self, problem, state, k, self.on(problem))

    def on(self, problem: Problem) -> Differentiate:  # noqa: ARG002 - others ask what the problem has
        """``differentiate`` with what it needs of the problem."""
        return self.differentiate

    def differentiate(
        self, loss: Loss, terminal: Terminal, start: Tensor, pool: Pool, lr: Tensor, plan: Plan
    ) -> Gradient:
        """The gradients of an unroll as this method takes them; what ``ddbench check-grad`` examines."""
        raise NotImplementedError

    def result(self, problem: Problem, state: Any) -> SyntheticSet:
        return finish(self, problem, state)


@dataclass(frozen=True)
class Swept(Method):
    """A method whose gradient is that of the reverse sweep, :func:`~ddbench.trajectory.unroll.reverse`."""

    curvature: Annotated[Curvature, "TESLA's formula, or the true unrolled gradient"] = "exact"
    window: Annotated[int | None, Ge(1), "differentiate only the last steps of the student; none for all"] = None
    engine: Annotated[Kind, "compile student steps: where it pays (auto), never, or always"] = "auto"
    precision: Annotated[Precision, "of convolutions in student steps, where it is near enough to float32"] = "float32"

    def on(self, problem: Problem) -> Differentiate:
        """``differentiate``, which judges a lower precision by the latest snapshot before ``max_start``, too."""
        if self.precision == "float32":
            return self.differentiate
        kept = problem.workspace
        if "probe" not in kept:
            kept["probe"] = max(epoch for epoch in self.needs(problem).snapshots if epoch < self.max_start)
        name = f"{problem.experts.folder.name}/{kept['probe']}"
        return partial(self.differentiate, probe=Probe(name, lambda: problem.experts.snapshot(0, kept["probe"])))

    def differentiate(
        self,
        loss: Loss,
        terminal: Terminal,
        start: Tensor,
        pool: Pool,
        lr: Tensor,
        plan: Plan,
        probe: Probe | None = None,
    ) -> Gradient:
        engine = Engine(self.engine, self.steps * self.segments, self.precision, probe)
        return reverse(
            loss, terminal, start, pool, lr, plan, curvature=self.curvature, window=self.window, engine=engine
        )


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
    learned = method.labels == "learned"
    return PixelState.start(images, labels, method.lr_init, learn_labels=learned, outer=method.outer)


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of an expert's trajectory, and what the student does that is to follow it."""

    expert: int
    epoch: int
    start: Tensor  # theta*_s
    target: Tensor  # theta*_{s+M}
    plan: Plan

    @classmethod
    def draw(cls, method: Method, problem: Problem, starts: range, images: int) -> Segment:
        """A segment that begins at one of ``starts``, and a student's plan for frozen and new ``images``."""
        expert, epoch = int(torch.randint(method.experts, ())), int(torch.randint(starts.start, starts.stop, ()))
        start, target = problem.experts.segment(expert, epoch, method.span)
        dsa = problem.dsa if method.augment else DSA()
        plan = Plan.draw(images, method.syn_steps, method.batch_syn, dsa)
        return cls(expert, epoch, start, target, plan)


def advance(
    method: Method,
    problem: Problem,
    state: PixelState,
    k: int,
    differentiate: Differentiate,
    starts: range | None = None,
    threshold: float | None = None,
) -> tuple[PixelState, dict[str, float | Tensor]]:
    """One iteration: draw segments and a student's plan for each, differentiate, descend the mean gradient.

    Of the new images and labels only the rows in the plans' batches are read, labelled and moved, so that an
    iteration costs the same however many images there are. ``starts`` are the epochs at which a segment may begin.
    A segment whose loss is above ``threshold`` (or not a number) is left out of the mean; without any, nothing
    moves: neither values nor momenta. The metric ``skipped`` is the share of segments left out.
    """
    starts = starts or range(method.max_start)
    everything = _frozen(problem) + len(state.images) * problem.decoder.copies
    drawn = [Segment.draw(method, problem, starts, everything) for _ in range(method.segments)]
    seen, plans = Plan.compact([segment.plan for segment in drawn], _frozen(problem))
    segments = [replace(segment, plan=plan) for segment, plan in zip(drawn, plans, strict=True)]
    view = View.of(problem.decoder, seen, state.images.device)
    catch_up(method, state, view.rows)
    images = state.images[view.rows]
    shown = view.images(images)
    tasks = [_task(method, problem, state, segment, view, images, shown) for segment in segments]
    total, count, losses = _mean(method, problem, tasks, differentiate, threshold)
    if total is not None:
        descend(method, state, view.rows, view.pull(images, total))
    if k % 10 == 9:  # not every step: reading a number makes a GPU wait
        check_lr(float(state.lr), method.lr_init)
    numbers: dict[str, float | Tensor] = {"loss": losses, "lr": state.lr.clone()}
    return state, numbers if threshold is None else numbers | {"skipped": 1 - count / method.segments}


def _frozen(problem: Problem) -> int:
    return sum(len(s) * s.decoder.copies for s in problem.frozen.sets)


def _task(
    method: Method, problem: Problem, state: PixelState, segment: Segment, view: View, images: Tensor, shown: Tensor
) -> Task:
    """A segment's unroll of the stored ``images`` ``(r, c, h, w)``, which students see as ``shown``."""
    labels = state.labels[view.rows]
    if method.labels == "learned":
        labels = targets(labels, "logit")
    elif method.labels == "teacher" and method.relabel:
        teacher = problem.experts.snapshot(segment.expert, segment.epoch + method.span)
        decoded = teacher_labels(problem, problem.decoder(images), teacher, _at_once(method))
        labels = mean_of_copies(decoded, problem.decoder)
    pool = problem.frozen.pool(shown, view.labels(labels))
    loss = student_loss(problem.network, buffers(problem, segment.expert, segment.epoch))
    end = matching(segment.start, segment.target)
    return Task(loss, end, segment.start, pool, state.lr.to(segment.start.dtype), segment.plan)


def _mean(
    method: Method, problem: Problem, tasks: list[Task], differentiate: Differentiate, threshold: float | None
) -> tuple[Gradient | None, int, Tensor]:
    """The mean gradient of those segments whose loss is small enough, how many they are, and the mean loss of all."""
    if threshold is None and at_once(method, problem) > 1:
        total = differentiate(*stacked(tasks))
        return total.times(1 / len(tasks)), len(tasks), total.loss / len(tasks)
    total, count, losses = None, 0, []
    for task in tasks:
        found = differentiate(*task)
        losses.append(found.loss)
        if threshold is None or float(found.loss) <= threshold:
            total, count = found if total is None else total.plus(found), count + 1
    loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
    return total if total is None or count == 1 else total.times(1 / count), count, loss


def at_once(method: Method, problem: Problem) -> int:
    """How many segments one vectorised unroll takes: all of them, or one."""
    key = f"stacked {method.stacked}"
    if method.segments == 1 or _why_apart(method):
        return 1
    if key not in problem.workspace:  # the answer costs a trial with the network
        problem.workspace[key] = trains_together(problem.network, Recipe(augment=""), method.stacked)
    return method.segments if problem.workspace[key] else 1


def _why_apart(method: Method) -> str | None:
    """The option under which segments are differentiated one after the other."""
    if getattr(method, "threshold", None) is not None:
        return "matcher.threshold, which each loss is compared with"
    if method.relabel:
        return "matcher.relabel, which gives each segment labels of its own"
    if getattr(method, "precision", "float32") != "float32":
        return "matcher.precision, which is checked for one student"
    if getattr(method, "engine", "auto") == "compiled":
        return "matcher.engine=compiled, which compiles the steps of one student"
    return None


def finish(method: Method, problem: Problem, state: PixelState) -> SyntheticSet:
    """The state as a set, with the labels to store; all rows brought up to date, in copies."""
    learned = method.labels == "learned"
    images, labels = caught_up(method, state)
    if method.labels == "teacher" and method.relabel:
        labels = ensemble_labels(method, problem, images)
    return SyntheticSet(images, labels, float(state.lr), "logit" if learned else "probability", method.labels)


def buffers(problem: Problem, expert: int, epoch: int) -> Tensor:
    """The batch-norm buffers of an expert's snapshot; empty for networks without."""
    if problem.network.length == problem.network.parameters:
        return torch.empty(0, device=problem.network.device)  # nothing to read from the file, in every step
    return problem.experts.snapshot(expert, epoch)[problem.network.parameters :]


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
