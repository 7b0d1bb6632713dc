"""FTD: trajectory matching from flat experts, and the moving average of the images.

Du, Jiang, Tan, Zhou & Li, "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation", CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ddbench import Needs, Problem, Published, SyntheticSet
from ddbench.trajectory.descent import catch_up
from ddbench.trajectory.method import PixelState, Swept, advance, begin, finish, needs, swept
from ddbench_trajectories.flat import Alpha, Flat, Rho, flat_needs


@dataclass
class AveragedState:
    """What MTT moves, and the running mean of its images ``(n, c, h, w)``."""

    pixels: PixelState
    average: Tensor


@dataclass(frozen=True)
class Ftd(Swept):
    """Flat trajectory distillation: MTT's objective, with experts whose errors grow little when students stray.

    A student that is graded starts from its own weights, not from an expert's, so that the errors of all segments add
    up. Experts in flat regions of the loss make that sum smaller.

    | paper | here |
    | --- | --- |
    | rho, alpha of GSAM, which trains the experts | ``rho``, ``alpha`` |
    | N, M, eta of the synthetic steps | ``syn_steps``, ``span``, the student lr from ``lr_init`` |
    | EMA of the synthetic images | ``decay`` |

    The result is the moving average ``a <- decay a + (1 - decay) x`` of the images x after each iteration. As in the
    released code a starts at the real images, and is not corrected for that: after k iterations they still weigh
    ``decay**k``, so a decay near 1 needs many iterations (0.9999 and 5000 leave them 61 %). ``decay=0`` is the
    last iterate. The released code grades the average with networks that have learned the last iterate before, which
    flatters its numbers; here, students of the average start afresh.

    The gradient is by default the exact one of MTT's unroll, at constant memory.
    """

    name = "ftd"
    paper = "Du et al., CVPR 2023"
    paper_url = "https://arxiv.org/abs/2211.11004"
    published = (Published("FTD"), Published("FTD(DATM rerun)"))
    labels: Annotated[Literal["hard", "teacher"], "what the images are labelled with"] = "hard"
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    decay: Annotated[float, Ge(0), Lt(1), "of the moving average of the images; 0 for the last iterate"] = 0.95
    flat: Flat = True
    rho: Rho = 0.01
    alpha: Alpha = 0.3

    def needs(self, problem: Problem) -> Needs:
        return flat_needs(needs(self), problem, self)

    def init(self, problem: Problem) -> AveragedState:
        pixels = begin(self, problem, problem.sample())
        return AveragedState(pixels, pixels.images.clone())

    def step(self, problem: Problem, state: AveragedState, k: int) -> tuple[AveragedState, dict[str, float | Tensor]]:
        pixels, numbers = advance(self, problem, state.pixels, k, partial(swept, self, problem=problem))
        return averaged(self, state, pixels, self.decay), numbers

    def result(self, problem: Problem, state: AveragedState) -> SyntheticSet:
        return finish(self, problem, replace(state.pixels, images=state.average))


def averaged(method: Swept, state: AveragedState, pixels: PixelState, decay: float) -> AveragedState:
    """The state after an iteration that led to ``pixels``, whose images have joined the running mean."""
    # every row must be where dense descent has it, since momentum moves those outside this step's batches too
    catch_up(method, pixels, torch.arange(len(pixels.images), device=pixels.images.device))
    state.average.mul_(decay).add_(pixels.images, alpha=1 - decay)
    return AveragedState(pixels, state.average)
