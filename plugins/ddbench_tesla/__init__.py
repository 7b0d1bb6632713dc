"""TESLA: trajectory matching with memory that does not grow with the student's steps.

Cui, Wang, Si & Hsieh, "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ddbench import hookimpl
from ddbench.trajectory.method import Swept


@dataclass(frozen=True)
class Tesla(Swept):
    """Match expert trajectories through T student steps, one step's graph at a time.

    | paper | here |
    | --- | --- |
    | T, beta | ``syn_steps``; the learned student lr, which starts at ``lr_init`` |
    | theta*_t, theta*_{t+M} | an expert after s and after s + ``span`` epochs, s < ``max_start`` |
    | L (eq. 2) | squared distance of theta_T and theta*_{t+M}, over that of theta*_t and theta*_{t+M} |
    | X_i | the batch of step i: ``batch_syn`` images of this stage and the frozen ones |

    ``curvature="zero"`` is the published gradient (eq. 5-6), the true one with all Hessians left out;
    ``"exact"`` is the true gradient at the same memory. The released code halves the image gradient by
    accident; here it has its right size, so a published lr_img of 1000 is 500 here (recipes are converted).

    ``labels="teacher"`` is the paper's soft label assignment: the mean prediction of the experts for the
    images that distillation starts from, kept to the end. ``relabel=True`` is what the released code does:
    every iteration labels the current images by the target of its segment (what is stored is again the mean
    prediction); images and labels can then drift together until neither says anything, see docs/tesla.md. The
    official CIFAR commands use ``"hard"``.

    ``engine="auto"`` compiles the student's steps in runs that are long enough to win the time back, by a rule of
    shapes and counts (docs/performance.md). Compiled and eager steps agree up to rounding, not to the bit.
    """

    name = "tesla"
    labels: Annotated[Literal["teacher", "learned", "hard"], "what the images are labelled with"] = "teacher"
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    curvature: Annotated[Literal["zero", "exact"], "TESLA's formula, or the true unrolled gradient"] = "zero"


@hookimpl
def register_matchers(register) -> None:
    register(Tesla, recipes=Path(__file__).with_name("recipes.toml"))
