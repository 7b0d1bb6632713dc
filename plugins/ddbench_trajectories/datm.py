"""DATM: trajectory matching whose segments are as hard as the budget can hold, with learned soft labels.

Guo, Wang, Cazenavette, Li, Zhang & You, "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory
Matching", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from ddbench import DivergedError, Needs, Problem, Published, UsageError
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.method import Swept, advance, begin, needs, swept
from ddbench_trajectories.correct import check_budget, correct_images, expert_logits
from ddbench_trajectories.flat import Alpha, Flat, Rho, flat_needs

PATIENCE = 50  # iterations that may all be skipped before the run gives up


@dataclass(frozen=True)
class Datm(Swept):
    """Difficulty-aligned trajectory matching: early segments for few images, later ones for many.

    | paper | here |
    | --- | --- |
    | T-, T+: segments begin in this range | ``min_start``, ``max_start`` |
    | T: the bound that grows to T+ (sequential generation) | ``cur_max``, within ``expansion_end`` iterations |
    | soft labels, learned as logits; their lr | ``labels="learned"``, ``lr_label`` (momentum 0.9) |
    | initial images that the expert classifies correctly | ``pix_init="correct"`` |

    Students learn softmax(Y), without temperature, here and when they are graded. The first Y of an image is the
    mean of the logits of those experts, at their last snapshot, that classify it correctly. Where none does (the
    released code divides zero by zero), it is the mean of all, in which the largest logit and that of the true class
    change places. Last means ``experts.epochs``, or where the last segment ends when that is not given. The
    released code labels plain real images (``pix_init="real"``) by one expert alone; here all of them have a say.

    An iteration whose loss exceeds ``threshold`` is skipped: images, labels, student lr and their momenta stay as they
    are (metric ``skipped``). ``curvature="exact"`` is the published gradient, autograd's through the unroll, at
    constant memory; ``"zero"`` leaves the Hessians out, as the released DATM_tesla does. The paper's experts are
    FTD's: ``flat=True``.
    """

    name = "datm"
    paper = "Guo et al., ICLR 2024"
    paper_url = "https://arxiv.org/abs/2310.05773"
    published = (Published("DATM"),)
    labels: Annotated[Literal["learned", "teacher", "hard"], "what the images are labelled with"] = "learned"
    pix_init: Annotated[
        Literal["correct", "real", "noise"], "where the images start; correct: as experts classify them"
    ] = "correct"
    min_start: Annotated[int, Ge(0), "the earliest start epoch"] = 0
    cur_max: Annotated[int, Ge(1), "start epochs are drawn below this at first (with expansion_end)"] = 1
    expansion_end: Annotated[
        int | None, Ge(1), "iterations in which cur_max grows to max_start; none: max_start from the beginning"
    ] = None
    threshold: Annotated[float, Gt(0), "iterations with a larger loss are skipped"] = 1.0
    flat: Flat = False
    rho: Rho = 0.01
    alpha: Alpha = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.starts(0)
        if not first:
            raise UsageError(
                f"matcher.min_start {self.min_start} leaves no start epoch below {first.stop}; choose a smaller one"
            )

    def starts(self, k: int) -> range:
        """The start epochs that iteration ``k`` draws from."""
        if self.expansion_end is None:
            return range(self.min_start, self.max_start)
        first = min(self.cur_max, self.max_start)
        grown = first + int((self.max_start - first) * k / self.expansion_end)
        return range(self.min_start, min(grown, self.max_start))

    def last(self, problem: Problem) -> int:
        """The last epoch of the experts."""
        return problem.expert_recipe.epochs or self.max_start - 1 + self.span

    def needs(self, problem: Problem) -> Needs:
        """Snapshots in the range of the segments, and the last one if images or labels depend on it."""
        if self.pix_init == "correct":
            check_budget(problem)
        reached = max(self.starts(k).stop for k in (0, self.steps - 1))
        asked = needs(self, range(self.min_start, reached))
        if self.pix_init == "correct" or self.labels == "learned":
            epochs = tuple(sorted({*asked.snapshots, self.last(problem)}))
            asked = Needs(asked.experts, epochs)
        return flat_needs(asked, problem, self)

    def init(self, problem: Problem) -> PixelState:
        last = self.last(problem)
        real = correct_images(problem, self.experts, last) if self.pix_init == "correct" else problem.sample()
        logits = expert_logits(problem, real, self.experts, last) if self.labels == "learned" else None
        return begin(self, problem, real, logits, self.starts(0))

    def step(self, problem: Problem, state: PixelState, k: int) -> tuple[PixelState, dict[str, float | Tensor]]:
        differentiate = partial(swept, self, problem=problem)
        moved, numbers = advance(self, problem, state, k, differentiate, self.starts(k), self.threshold)
        if moved.steps == 0 and k + 1 == min(self.steps, PATIENCE):
            raise DivergedError(
                f"all {k + 1} losses exceeded matcher.threshold {self.threshold:g}, so that nothing has moved; try a "
                "smaller matcher.lr_init, fewer matcher.syn_steps, or a larger matcher.threshold"
            )
        return moved, numbers
