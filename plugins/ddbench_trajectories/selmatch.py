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

from ddbench import Examples, Needs, Problem, Published, SyntheticSet, UsageError
from ddbench.problem.labels import forgotten, right, teacher_labels
from ddbench.trajectory.method import PixelState, Segment, Shown, Swept, begin, finish, move, needs, swept, targets_of
from ddbench.trajectory.unroll import Task, matching, student_loss
from ddbench_trajectories.correct import taken


@dataclass
class SelectedState:
    """The images that move, and the real ones that stay, class after class."""

    pixels: PixelState
    kept: Examples


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
    | beta, where the window begins | ``beta``, in units of ipc, as in the released code |
    | difficulty: C-score (CIFAR), forgetting (Tiny ImageNet) | ``score``, of ``judges`` experts |
    | N, M, T+ of MTT | ``syn_steps``, ``span``, ``max_start`` |

    With many images per class, a small ``alpha`` and late segments (``max_start``) keep what is rare in the real
    data. With few, ``beta`` above 1 begins the window among easier images; the paper chooses it by training on windows.
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
    beta: Annotated[float, Ge(0), "where the window begins among a class's images, hardest first, in units of ipc"] = (
        0.5
    )
    score: Annotated[Literal["confidence", "forgetting"], "what makes an image hard"] = "confidence"
    judges: Annotated[int, Ge(1), "experts whose opinion is the score, at most all"] = 5

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError, before any expert is trained, when a class is smaller than the window asks for."""
        if self.pix_init == "real":
            return needs(self)
        gone = sum(len(s) * s.decoder.copies for s in problem.frozen.sets) // problem.classes
        first, smallest = int(self.beta * problem.shown), problem.real.smallest_class
        if gone + first + problem.shown > smallest:
            raise UsageError(
                f"the window ends at real image {gone + first + problem.shown} of a class, but the smallest class has "
                f"{smallest}; choose a smaller matcher.beta than {self.beta:g}, or a smaller --ipc"
            )
        return Needs(self.experts, tuple(range(self.max_start + self.span)))

    def moved(self, ipc: int) -> int:
        """How many images of a class are optimised."""
        return max(1, int(ipc * self.alpha))

    def init(self, problem: Problem) -> SelectedState:
        start = problem.sample() if self.pix_init == "real" else problem.pack(self.chosen(problem))
        stay = problem.ipc - self.moved(problem.ipc)
        stays = torch.arange(len(start), device=start.images.device) % problem.ipc < stay
        kept, moved = (start[torch.nonzero(part).flatten()] for part in (stays, ~stays))
        return SelectedState(begin(self, self.beside(problem, kept), moved), kept)

    def step(self, problem: Problem, state: SelectedState, k: int) -> tuple[SelectedState, dict[str, float | Tensor]]:
        segment = Segment.draw(self, problem)
        inner = self.beside(problem, state.kept)
        shown = Shown.draw(self, inner, state.pixels)
        pool = shown.pool(inner, targets_of(self, inner, segment, shown))
        loss, lr = student_loss(problem.network, segment.buffers(problem)), state.pixels.lr.to(segment.start.dtype)
        task = Task(loss, matching(segment.start, segment.target), segment.start, pool, lr, shown.plan)
        numbers = move(self, state.pixels, shown, swept(self, task, problem), k)
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

    def chosen(self, problem: Problem) -> Tensor:
        """The real images ``(classes shown,)`` of the window, class after class, each from the hardest on."""
        ease, first = self.ease(problem), int(self.beta * problem.shown)
        chosen = []
        for label, members in enumerate(problem.real.members):
            left = members[~torch.isin(members, taken(problem, label))]
            chosen.append(left[ease[left].argsort(stable=True)][first : first + problem.shown])
        return torch.cat(chosen)

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
