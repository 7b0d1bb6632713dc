"""SelMatch: trajectory matching of a part of the images, beside real ones of a chosen difficulty that stay.

Lee & Chung, "SelMatch: Effectively Scaling Up Dataset Distillation via Selection-Based Initialization and Partial
Updates by Trajectory Matching", ICML 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ddbench import Examples, Needs, Problem, Published, Recipe, Student, SyntheticSet, UsageError, fit
from ddbench.problem.labels import forgotten, right, teacher_labels
from ddbench.trajectory.method import PixelState, Segment, Shown, Swept, begin, finish, move, needs, swept, targets_of
from ddbench.trajectory.student_lr import AUTO
from ddbench.trajectory.unroll import Task, matching, student_loss
from ddbench_trajectories.correct import taken

WINDOWS, JUDGING = 5, 5  # that are compared (beta=auto), and of how many images one belongs to none then
LESSON = Recipe(steps=300, batch=128, lr=0.02, momentum=0.9, weight_decay=5e-4, schedule="step")


@dataclass
class SelectedState:
    """The images that move, and the real ones that stay, class after class."""

    pixels: PixelState
    kept: Examples
    first: int | None = None  # place in a class, hardest first, at which the window begins


@dataclass(frozen=True)
class SelMatch(Swept):
    """Real images from a window of difficulty, of which only a share is optimised (Lee & Chung, ICML 2024).

    The real images of a class are ordered from the hardest to the easiest. Of the window of ipc images that begins at
    place ``int(beta ipc)``, the hardest stay as they are (D_select) and the ``int(alpha ipc)`` easiest, at
    least one, move (D_distill):

        min over D_distill of |theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2,

    where the student takes T steps on D_select and D_distill together.

    | paper | here |
    | --- | --- |
    | alpha, the share that is distilled | ``alpha`` |
    | beta, where the window begins | ``beta``, in units of ipc, as in the released code; ``auto`` finds it |
    | difficulty: C-score (CIFAR), forgetting (Tiny ImageNet) | ``score``, of ``judges`` experts |
    | N, M, T+ of MTT | ``syn_steps``, ``span``, ``max_start`` |

    With many images per class, a small ``alpha`` and late segments (``max_start``) keep what is rare in the real
    data. With few, ``beta`` above 1 begins the window among easier images; the paper chooses it by training on windows,
    and so does ``auto``: a student learns each of five windows, from the hardest to the easiest, and a fifth of the
    training images, which no window has then, decides. Published values are those of thousands of images per class. Of
    500 of CIFAR-10, the window of 100 that begins at 0.5 teaches 27 % (validation, one student), those at 1, 2, 3 and 4
    teach 42, 45, 47 and 45 %, and random images 43 to 44 (docs/results/selmatch-windows.json).
    A window of few images is alike in difficulty, and may teach less than random ones do, whatever its place: on
    digits at 10 images per class it does, which optimisation makes up for in part.

    Differences from the released code: it reads difficulties from files, C-scores for CIFAR. Here they are made of the
    experts' own snapshots, after each epoch up to where the last segment ends, on unaugmented images:
    ``confidence``, the mean probability of the true class (a proxy that the paper of the C-score itself gives: Jiang,
    Zhang, Talwar & Mozer, ICML 2021), or ``forgetting`` events (equals in the order of the data, as there). A window
    that does not fit into a class is refused. The gradient is the same, at constant memory, and taken for D_distill
    alone. The code's students are ResNet-18 with batch norm, with other augmentation on D_select than on D_distill;
    here the protocol trains them. In later stages of a scheduler, the images that earlier stages began with leave the
    order.
    """

    name = "selmatch"
    paper = "Lee & Chung, ICML 2024"
    paper_url = "https://arxiv.org/abs/2406.18561"
    published = (Published("SelMatch"),)
    labels: Annotated[Literal["hard"], "what the images are labelled with"] = "hard"
    pix_init: Annotated[Literal["window", "real"], "where the images start; real: at random real images"] = "window"
    alpha: Annotated[float, Gt(0), Le(1), "share of the images that is optimised; the others stay real"] = 0.5
    beta: Annotated[
        Annotated[float, Ge(0)] | Literal["auto"],
        "where the window begins among a class's images, hardest first, in units of ipc; auto: where it teaches most",
    ] = 0.5
    score: Annotated[Literal["confidence", "forgetting"], "what makes an image hard"] = "confidence"
    judges: Annotated[int, Ge(1), "experts whose opinion is the score, at most all"] = 5

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError, before any expert is trained, when a class is smaller than the window asks for."""
        if self.pix_init == "real":
            return needs(self)
        gone = sum(len(s) * s.decoder.copies for s in problem.frozen.sets) // problem.classes
        first = 0 if self.beta == AUTO else int(self.beta * problem.shown)
        smallest = problem.real.smallest_class
        if gone + first + problem.shown > smallest:
            way = "" if self.beta == AUTO else f"a smaller matcher.beta than {self.beta:g}, or "
            raise UsageError(
                f"the window ends at real image {gone + first + problem.shown} of a class, but the smallest class has "
                f"{smallest}; choose {way}a smaller --ipc"
            )
        return Needs(self.experts, tuple(range(self.max_start + self.span)))

    def moved(self, ipc: int) -> int:
        """How many images of a class are optimised."""
        return max(1, int(ipc * self.alpha))

    def init(self, problem: Problem) -> SelectedState:
        rows, first = (None, None) if self.pix_init == "real" else self.chosen(problem)
        start = problem.sample() if rows is None else problem.pack(rows)
        stay = problem.ipc - self.moved(problem.ipc)
        stays = torch.arange(len(start), device=start.images.device) % problem.ipc < stay
        kept, moved = (start[torch.nonzero(part).flatten()] for part in (stays, ~stays))
        return SelectedState(begin(self, self.beside(problem, kept), moved), kept, first)

    def step(self, problem: Problem, state: SelectedState, k: int) -> tuple[SelectedState, dict[str, float | Tensor]]:
        segment = Segment.draw(self, problem)
        inner = self.beside(problem, state.kept)
        shown = Shown.draw(self, inner, state.pixels)
        pool = shown.pool(inner, targets_of(self, inner, segment, shown))
        loss, lr = student_loss(problem.network, segment.buffers(problem)), state.pixels.lr.to(segment.start.dtype)
        task = Task(loss, matching(segment.start, segment.target), segment.start, pool, lr, shown.plan)
        numbers = move(self, state.pixels, shown, swept(self, task, problem), k)
        if self.beta == AUTO and k == 0 and state.first is not None:
            numbers["beta"] = state.first / problem.shown
        return state, numbers | {"start": float(segment.epoch)}

    def result(self, problem: Problem, state: SelectedState) -> SyntheticSet:
        made, kept = finish(self, problem, state.pixels), state.kept

        def together(stay: Tensor, moved: Tensor) -> Tensor:
            return torch.cat([part.unflatten(0, (problem.classes, -1)) for part in (stay, moved)], 1).flatten(0, 1)

        return replace(made, images=together(kept.images, made.images), labels=together(kept.labels, made.labels))

    def beside(self, problem: Problem, kept: Examples) -> Problem:
        """The problem of the images that move: those that stay are frozen, as the sets of earlier stages are."""
        if not len(kept):
            return problem
        held = problem.workspace.get("selmatch")
        if held is None or held.sets[-1].images is not kept.images:
            stays = SyntheticSet(kept.images, kept.labels, decoder=problem.decoder)
            held = replace(problem.frozen, sets=(*problem.frozen.sets, stays))
            problem.workspace["selmatch"] = held
        return replace(problem, ipc=self.moved(problem.ipc), frozen=held)

    def chosen(self, problem: Problem) -> tuple[Tensor, int]:
        """The real images ``(classes shown,)`` of the window, class after class, each from the hardest on.

        And the place in each class at which it begins.
        """
        ease, orders = self.ease(problem), []
        for label, members in enumerate(problem.real.members):
            left = members[~torch.isin(members, taken(problem, label))]
            orders.append(left[ease[left].argsort(stable=True)])
        first = teaching_most(problem, orders) if self.beta == AUTO else int(self.beta * problem.shown)
        return torch.cat([order[first : first + problem.shown] for order in orders]), first

    @torch.no_grad()
    def ease(self, problem: Problem) -> Tensor:
        """How easy each real image is, ``(n,)`` in float64: the score, or how seldom the image is forgotten."""
        epochs, total = range(1, self.max_start + self.span), torch.zeros(len(problem.real), dtype=torch.float64)
        for judge in range(min(self.judges, self.experts)):
            vectors = (problem.experts.snapshot(judge, epoch) for epoch in epochs)
            if self.score == "forgetting":
                total -= forgotten(torch.stack([right(problem, vector) for vector in vectors]))
            else:
                total += sum(confidence(problem, vector) for vector in vectors)
        return total


def confidence(problem: Problem, vector: Tensor) -> Tensor:
    """The probability ``(n,)`` that the network ``vector`` gives to the true class of each real image."""
    batches = problem.real.at_hand.batches(256)
    said = [(teacher_labels(problem, b.images, vector) * b.labels).sum(1) for b in batches]
    return torch.cat(said).cpu().double()


def teaching_most(problem: Problem, orders: list[Tensor]) -> int:
    """The place at which the window of ``problem.shown`` images begins that a student learns most from.

    ``orders`` has the real images of each class, from the hardest to the easiest. A fifth of each, or what a window
    leaves, belongs to no window while they are compared: one student each, all alike but for what they see.
    """
    smallest = min(map(len, orders))
    apart = min(smallest - problem.shown, smallest // JUDGING)
    rest = smallest - problem.shown - apart
    if apart == 0 or rest == 0:
        return 0  # there is one window, or nothing to tell them apart
    drawn = [torch.randperm(len(order))[:apart] for order in orders]
    judging = torch.cat([order[rows] for order, rows in zip(orders, drawn, strict=True)])
    left = [order[~torch.isin(order, judging)] for order in orders]
    places = sorted({round(rest * i / (WINDOWS - 1)) for i in range(WINDOWS)})
    windows = (torch.cat([order[first : first + problem.shown] for order in left]) for first in places)
    taught = [taught_by(problem, window, judging) for window in windows]
    best = places[taught.index(max(taught))]
    return round(best * (smallest - problem.shown) / rest)


def taught_by(problem: Problem, window: Tensor, judging: Tensor) -> float:
    """How many of the real images ``judging`` a student of those of ``window`` classifies right."""
    network, seed = problem.network, problem.seed / "window" / len(problem.frozen)
    lesson = LESSON.on(problem.augment)
    learned = fit(network, Student(network.init(seed / "start")), problem.real[window], lesson, seed, what="windows")
    with torch.no_grad():
        said = [
            network.apply(learned.vector, problem.real[rows].images, train=False).argmax(1).cpu()
            for rows in judging.split(256)
        ]
    return float((torch.cat(said) == problem.real.targets[judging]).double().sum())
