"""What trajectory matchers are made of: options, segments of experts, what a student is shown of a set, labels.

A method is a :class:`Method`, or a :class:`Swept` if the engine's sweep gives its gradient; its step is
:func:`advance`, or one of its own, written with the pieces below. Under a decoder, n images are stored and n copies
are what students see: plans, batches and gradients are of the latter, and what moves are the stored ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ddbench.base.options import Removed
from ddbench.data.augment import DSA
from ddbench.data.dataset import Examples
from ddbench.problem.labels import teacher_labels
from ddbench.problem.problem import Memory, Needs, Problem
from ddbench.problem.synthetic import Pool, SyntheticSet, targets
from ddbench.train.compile import Kind, settle, verdicts
from ddbench.train.network import Network
from ddbench.train.precision import Precision
from ddbench.trajectory import descent
from ddbench.trajectory.decoded import View, mean_of_copies
from ddbench.trajectory.descent import PixelState, at_end, catch_up, caught_up, check_lr, check_outer, descend
from ddbench.trajectory.engine import Engine, Probe
from ddbench.trajectory.labelling import at_once, ensemble_labels, teacher_epoch
from ddbench.trajectory.later import check_later, in_stage
from ddbench.trajectory.memory import unroll_bytes
from ddbench.trajectory.segment import Segment
from ddbench.trajectory.student_lr import AUTO, SEGMENTS, least
from ddbench.trajectory.unroll import (
    Curvature,
    Differentiate,
    Gradient,
    Plan,
    Task,
    Terminal,
    by_task,
    matching,
    play,
    reverse,
    student_loss,
)
from ddbench.trajectory.watching import stuck

SHARP = 10.0  # the logit of the true class when learned labels start from hard ones


@dataclass(frozen=True)
class Method:
    """The options of a trajectory matcher, by the names that recipes use.

    A matcher adds a name, ``differentiate`` and options of its own; it says which ``labels`` and ``pix_init``
    it has. Its state is a :class:`PixelState`, or holds one. ``batch_syn`` counts images as students see them, decoded.
    """

    decodes = divides = True
    removed_options: ClassVar[dict[str, Removed]] = {
        "segments": Removed(1, "more iterations gain as much"),
        "outer=normalised": Removed("sgd", "it did not reach what SGD and Adam reach"),
        "stacked": Removed(None, "segments, which it stacked, are no longer taken several at a time"),
    }
    steps: Annotated[int, Ge(1), "iterations per stage"] = 500
    syn_steps: Annotated[int, Ge(1), "student steps per iteration, T"] = 10
    span: Annotated[int, Ge(1), "expert epochs between start and target, M"] = 2
    max_start: Annotated[int, Ge(1), "start epochs are drawn from 0..max_start-1"] = 10
    experts: Annotated[int, Ge(1), "expert trajectories"] = 10
    batch_syn: Annotated[int | None, Ge(1), "synthetic images per student step; none for all"] = None
    outer: Annotated[
        descent.Outer, "what moves the images: SGD, or Adam with a second moment per pixel or per image"
    ] = "sgd"
    lr_img: Annotated[float, Gt(0), "outer learning rate of the images"] = 100.0
    schedule: Annotated[descent.Schedule, "lr_img over a stage's iterations: the same, or half a cosine to zero"] = (
        "constant"
    )
    lr_lr: Annotated[float, Ge(0), "outer learning rate of the student lr"] = 1e-5
    lr_label: Annotated[float, Ge(0), "outer learning rate of label logits (labels=learned)"] = 2.0
    lr_init: Annotated[
        Annotated[float, Gt(0)] | Literal["auto"],
        "initial student lr, beta_0; auto: of least matching loss before the first iteration",
    ] = 0.03
    later_max_start: Annotated[tuple[int, ...], "max_start of stages after the first; the last holds on"] = ()
    later_lr_init: Annotated[tuple[float, ...], "lr_init of stages after the first; the last holds on"] = ()
    momentum: Annotated[float, Ge(0), "outer momentum of images (Adam's beta_1) and student lr"] = 0.5
    labels: str = "hard"
    teacher_epochs: Annotated[int | None, Ge(1), "epochs of the experts that label; none: where segments end"] = None
    relabel: Annotated[bool, "teacher labels anew in every iteration, as TESLA's code does"] = False
    clip: Annotated[float | None, Gt(0), "bound of the image gradient, times its running mean"] = 2.0
    pix_init: str = "real"
    augment: Annotated[bool, "DSA in the student's steps"] = True

    def __post_init__(self) -> None:
        check_outer(self)
        check_later(self)

    def staged(self, problem: Problem) -> Method:
        return in_stage(self, problem)

    def differentiate(self, task: Task) -> Gradient:
        """The gradients of an unroll as this method takes them; what ``ddbench check-grad`` examines."""
        raise NotImplementedError

    def terminal(self, problem: Problem, start: Tensor, target: Tensor) -> Terminal:  # noqa: ARG002 - others ask
        """The loss of where a student ends that went from ``start`` towards ``target``, both ``(p,)``."""
        return matching(start, target)

    def needs(self, problem: Problem) -> Needs:  # noqa: ARG002 - others ask what the problem has
        return needs(self)

    def init(self, problem: Problem) -> Any:
        return begin(self, problem, problem.sample())

    def step(self, problem: Problem, state: Any, k: int) -> tuple[Any, dict[str, float | Tensor]]:
        return advance(self, problem, state, k)

    def result(self, problem: Problem, state: Any) -> SyntheticSet:
        return finish(self, problem, state)

    def memory(self, problem: Problem) -> Memory:
        """The set with its momenta, and the peak of one iteration, which is played on the meta device."""
        shown = problem.ipc * problem.classes * problem.decoder.copies
        batch = min(self.batch_syn or shown, shown)
        net = problem.network
        iteration = _iteration_bytes(self, (net.source, net.shape, net.classes), net.dtype, problem.augment, batch)
        return Memory(problem.state_bytes(2 if self.outer == "adam" else 1), iteration)

    def passes(self, problem: Problem) -> float:
        """T student steps, each of which goes forwards and backwards once, and once more for its derivatives."""
        shown = problem.ipc * problem.classes * problem.decoder.copies
        return 2.5 * self.syn_steps * min(self.batch_syn or shown, shown)

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        """What is wrong where students close hardly any of the distance; None where they do."""
        recipe = problem.expert_recipe
        walk = self.span * recipe.per_epoch(len(problem.real)) * recipe.lr
        return stuck(rows, walk, self.syn_steps * rows[-1].get("lr", float("nan"))) if rows else None

    def notes(self) -> dict[str, dict[str, object]]:
        """How student steps were compiled or lowered in this stage."""
        return verdicts()

    def resume(self, notes: dict[str, dict[str, object]]) -> None:
        """Hold to what an interrupted stage began with."""
        settle(notes)


@lru_cache(maxsize=64)  # playing takes a second, and a plan of many runs asks for each seed and kind of forecast
def _iteration_bytes(method: Method, of: tuple[Any, Any, int], dtype: torch.dtype, augment: str, batch: int) -> int:
    """The peak of one iteration with a student ``of`` a source, image shape and number of classes."""
    source, shape, classes = of
    network = Network(source, shape, classes, torch.device("meta"), dtype)
    return unroll_bytes(by_task(method.differentiate), network, augment, batch, method.syn_steps)


@dataclass(frozen=True)
class Swept(Method):
    """A method whose gradient is that of the reverse sweep, :func:`~ddbench.trajectory.unroll.reverse`."""

    curvature: Annotated[Curvature, "TESLA's formula, or the true unrolled gradient"] = "exact"
    window: Annotated[int | None, Ge(1), "differentiate only the last steps of the student; none for all"] = None
    engine: Annotated[Kind, "compile student steps: where it pays (auto), never, or always"] = "auto"
    precision: Annotated[Precision, "of convolutions in student steps, where it is near enough to float32"] = "float32"

    def step(self, problem: Problem, state: Any, k: int) -> tuple[Any, dict[str, float | Tensor]]:
        own = type(self).differentiate is not Swept.differentiate
        return advance(self, problem, state, k, None if own else partial(swept, self, problem=problem))

    def differentiate(self, task: Task) -> Gradient:
        return swept(self, task)


def swept(method: Swept, task: Task, problem: Problem | None = None) -> Gradient:
    """The gradients of a task by the reverse sweep, with the method's curvature, window and engine."""
    return reverse(*task, curvature=method.curvature, window=method.window, engine=engine_for(method, problem))


def engine_for(method: Swept, problem: Problem | None = None) -> Engine:
    """How the method's student steps are computed; on a ``problem``, its experts judge a lower precision as well."""
    trained = None if problem is None or method.precision == "float32" else _probe(method, problem)
    return Engine(method.engine, method.steps, method.precision, trained)


def _probe(method: Swept, problem: Problem) -> Probe:
    """Where a lower precision has to be near enough besides a fresh network: the last snapshot before ``max_start``."""
    kept = problem.workspace
    if "probe" not in kept:
        kept["probe"] = max(epoch for epoch in method.needs(problem).snapshots if epoch < method.max_start)
    name = f"{problem.experts.folder.name}/{kept['probe']}"
    return Probe(name, lambda: problem.experts.snapshot(0, kept["probe"]))


def needs(method: Method, starts: range | None = None) -> Needs:
    """The experts of a trajectory matcher, with the snapshots at which a segment may begin (``starts``) or end."""
    starts = starts or range(method.max_start)
    epochs = {*starts, *(s + method.span for s in starts)}
    if method.labels == "teacher":
        epochs.add(teacher_epoch(method))
    return Needs(method.experts, tuple(sorted(epochs)))


def begin(
    method: Method, problem: Problem, examples: Examples, logits: Tensor | None = None, starts: range | None = None
) -> PixelState:
    """Stored real images (or noise) with their labels.

    Learned labels start as ``logits`` ``(n, k)``, by default sharp ones of the true class. Where the student lr is to
    be found, it is the best for segments that begin at one of ``starts``.
    """
    labels = examples.labels
    if method.labels == "teacher":
        labels = ensemble_labels(method, problem, examples.images)
    elif method.labels == "learned":
        labels = labels * SHARP if logits is None else logits
    images = torch.randn_like(examples.images) if method.pix_init == "noise" else examples.images
    lr = 1.0 if method.lr_init == AUTO else method.lr_init
    state = PixelState.start(images, labels, lr, learn_labels=method.labels == "learned", outer=method.outer)
    if method.lr_init == AUTO:
        state.lr_start = least(following(method, problem, state, starts))
        state.lr.fill_(state.lr_start)
    return state


def following(
    method: Method, problem: Problem, state: PixelState, starts: range | None = None
) -> Callable[[float], float]:
    """The mean matching loss over a few segments, drawn here, by the student lr; inf or nan where one runs away."""
    drawn = []
    for _ in range(SEGMENTS):
        segment, shown = Segment.draw(method, problem, starts), Shown.draw(method, problem, state)
        drawn.append((segment, shown, shown.pool(problem, targets_of(method, problem, segment, shown))))

    def mean_loss(beta: float) -> float:
        total = 0.0
        for segment, shown, pool in drawn:
            loss, lr = student_loss(problem.network, segment.buffers(problem)), segment.start.new_tensor(beta)
            end = play(loss, segment.start, pool, lr, shown.plan)
            total += float(method.terminal(problem, segment.start, segment.target)(end))
        return total / len(drawn)

    return mean_loss


@dataclass(frozen=True, eq=False)
class Shown:
    """What the student of one iteration sees: the rows in its plan's batches, and no others.

    An iteration then costs the same however many images there are: only these are read, labelled and moved.
    """

    view: View
    stored: Tensor  # (r, c, h, w)
    images: Tensor  # (d, c, h, w), decoded
    labels: Tensor  # (r, k), of what is stored
    plan: Plan  # for a pool of the frozen images and these

    @classmethod
    def draw(cls, method: Method, problem: Problem, state: PixelState) -> Shown:
        """A plan for frozen and new images, and the rows of the state that it uses, brought up to date."""
        frozen = sum(len(s) * s.decoder.copies for s in problem.frozen.sets)
        dsa = problem.dsa if method.augment else DSA()
        everything = frozen + len(state.images) * problem.decoder.copies
        rows, plan = Plan.draw(everything, method.syn_steps, method.batch_syn, dsa).compact(frozen)
        view = View.of(problem.decoder, rows, state.images.device)
        catch_up(method, state, view.rows)
        stored = state.images[view.rows]
        return cls(view, stored, view.images(stored), state.labels[view.rows], plan)

    def pool(self, problem: Problem, labels: Tensor) -> Pool:
        """The frozen images and those shown, with ``labels`` ``(r, k)``, which are probabilities."""
        return problem.frozen.pool(self.images, self.view.labels(labels))


def targets_of(method: Method, problem: Problem, segment: Segment, shown: Shown) -> Tensor:
    """What the student of an iteration learns ``(r, k)``: stored labels, softmax of logits, or those of the target."""
    if method.labels == "learned":
        return targets(shown.labels, "logit")
    if method.labels == "teacher" and method.relabel:
        teacher = problem.experts.snapshot(segment.expert, segment.epoch + method.span)
        decoded = teacher_labels(problem, problem.decoder(shown.stored), teacher, at_once(method))
        return mean_of_copies(decoded, problem.decoder)
    return shown.labels


def move(method: Method, state: PixelState, shown: Shown, gradient: Gradient, k: int) -> dict[str, float | Tensor]:
    """Iteration ``k`` of the outer descent, in place; the numbers to report of it."""
    descend(method, state, shown.view.rows, shown.view.pull(shown.stored, gradient))
    return report_of(method, state, gradient, k)


def report_of(method: Method, state: PixelState, gradient: Gradient, k: int) -> dict[str, float | Tensor]:
    """Loss and student lr, which must not have died or run away."""
    if k % 10 == 9:  # not every step: reading a number makes a GPU wait
        check_lr(float(state.lr), first_lr(method, state))
    found = {"lr_init": first_lr(method, state)} if method.lr_init == AUTO and k == 0 else {}
    return {"loss": gradient.loss, "lr": state.lr.clone(), **found}


def first_lr(method: Method, state: PixelState) -> float:
    """beta_0: as given, or as it was found."""
    return state.lr_start or 1.0 if method.lr_init == AUTO else method.lr_init


def advance(
    method: Method,
    problem: Problem,
    state: PixelState,
    k: int,
    differentiate: Differentiate | None = None,
    starts: range | None = None,
    threshold: float | None = None,
) -> tuple[PixelState, dict[str, float | Tensor]]:
    """Draw a segment and a student's plan, differentiate, descend (Cazenavette et al., CVPR 2022, algorithm 1).

    ``differentiate`` stands in for the method's own. ``starts`` are the epochs at which the segment may begin. A loss
    above ``threshold``, or one that is not a number, moves nothing: neither values nor momenta; the metric ``skipped``
    tells.
    """
    segment, shown = Segment.draw(method, problem, starts), Shown.draw(method, problem, state)
    pool = shown.pool(problem, targets_of(method, problem, segment, shown))
    loss = student_loss(problem.network, segment.buffers(problem))
    end, lr = method.terminal(problem, segment.start, segment.target), state.lr.to(segment.start.dtype)
    gradient = (differentiate or by_task(method.differentiate))(Task(loss, end, segment.start, pool, lr, shown.plan))
    begins = {"start": float(segment.epoch)}
    if threshold is None:
        return state, move(method, state, shown, gradient, k) | begins
    follows = float(gradient.loss) <= threshold
    numbers = move(method, state, shown, gradient, k) if follows else report_of(method, state, gradient, k)
    return state, numbers | begins | {"skipped": float(not follows)}


def finish(method: Method, problem: Problem, state: PixelState) -> SyntheticSet:
    """The state as a set, with the labels to store; all rows brought up to date, in copies until nothing follows."""
    images, labels = (at_end if state.steps >= method.steps else caught_up)(method, state)
    if method.labels == "teacher" and method.relabel:
        labels = ensemble_labels(method, problem, images)
    kind = "logit" if method.labels == "learned" else "probability"
    return SyntheticSet(images, labels, float(state.lr), kind, method.labels)
