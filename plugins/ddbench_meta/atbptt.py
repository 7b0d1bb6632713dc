"""AT-BPTT: backpropagation through a window of a student's training that goes where gradients are large.

Li, Gou, Zhang, Liang, Xie, Ouyang & Qin, "Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation",
NeurIPS 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.autograd import grad

from ddbench import Problem, Published, SyntheticSet, UsageError
from ddbench_meta.common import real_batch
from ddbench_meta.ratbptt import RatBptt
from ddbench_meta.ratbptt import State as Learned

EARLY, MIDDLE, LATE = 1, 2, 3
GAINS = {EARLY: 1.5, MIDDLE: 1.0}  # percent points of accuracy in a pass, below which a stage has come to rest
RESTS = {EARLY: 0.15, MIDDLE: 0.125}  # passes at rest after which the next stage begins, as a share of T


@dataclass
class State:
    """What ``rat-bptt`` learns, and where the window is in this pass over the real data.

    ``right`` adds up the students' accuracies of this pass in percent, ``before`` is the mean of the last one, and
    ``resting`` counts the passes in a row with little gain.
    """

    learned: Learned
    stage: int = EARLY
    start: int = 0
    window: int = 0
    right: float = 0.0
    before: float = 0.0
    resting: int = 0


@dataclass(frozen=True)
class AtBptt(RatBptt):
    """``rat-bptt`` with a window whose place and size follow the gradients of a student's training.

    At the beginning of every pass over the real data, a student that is not kept takes T steps on the set. With g_t the
    norm of its gradient at step t, and r(t) the number of steps whose change abs(g_t - g_{t-1}) is smaller than that at
    t, the window of W' steps begins after s steps:

    | stage | W' | s |
    | --- | --- | --- |
    | early | floor(W - d + 2 d r(t) / T) | min(t, T - W'), with t drawn by softmax(g) |
    | middle | W + d | uniform in 0 .. T - W' |
    | late | W - d | max(0, T - t - W'), with t drawn by softmax(g) |

    | paper | here |
    | --- | --- |
    | T, W, d | ``total``, ``window``, ``spread`` |
    | threshold-guided transition | little gain in accuracy, for passes in a row, ends the early and the middle stage |

    Little is less than 1.5 percent points in the early stage, for 0.15 T passes, and 1 in the middle one, for 0.125 T.
    All else is ``rat-bptt``, where the other options are explained. Tables and rules are those of the released code; in
    the code a stage ends only where 0.15 T or 0.125 T is a whole number, here as soon as it is reached. The paper's
    low-rank Hessians are not in the released code; here products with Hessians are exact, in the memory of one step.
    Accuracies are those on another batch of real images than the loss.
    """

    name = "at-bptt"
    version = "1"
    paper = "Li et al., NeurIPS 2025"
    paper_url = "https://arxiv.org/abs/2510.04838"
    published = (Published("AT-BPTT"),)
    spread: Annotated[int, Ge(0), "how far the window's size may be from its middle, d"] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.spread < self.window <= self.total - self.spread:
            raise UsageError(
                f"windows of {self.window} +- {self.spread} steps do not fit into an unroll of {self.total}; set "
                "matcher.spread below matcher.window, and matcher.total to the sum of both or more"
            )

    def init(self, problem: Problem) -> State:  # type: ignore[override]
        return State(super().init(problem))

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:  # type: ignore[override]
        """One of ``rat-bptt``, in this pass's window."""
        each = math.ceil(len(problem.real) / self.batch_real)
        if k % each == 0:
            if k:
                after_pass(state, state.right / each, self.total)
            state.start, state.window = self.placed(problem, state)
        gradient = self._gradient(problem, state.learned, state.start + state.window, state.window)
        state.right += self._accuracy(problem, gradient.end)
        state.learned, numbers = self.moved(state.learned, gradient, k)
        return state, numbers | {"phase": state.stage, "begins": state.start, "window": state.window}

    def result(self, problem: Problem, state: State) -> SyntheticSet:  # type: ignore[override]
        return super().result(problem, state.learned)

    def placed(self, problem: Problem, state: State) -> tuple[int, int]:
        """How many steps lie before the window of the next pass, and how many in it."""
        if state.stage == MIDDLE:
            window = self.window + self.spread
            return int(torch.randint(self.total - window + 1, ())), window
        norms = self.gradient_norms(problem, state.learned)
        t = int(torch.multinomial(norms.softmax(0), 1))
        if state.stage == LATE:
            window = self.window - self.spread
            return max(0, self.total - t - window), window
        window = sized(norms, t, self.window, self.spread)
        return min(t, self.total - window), window

    def gradient_norms(self, problem: Problem, learned: Learned) -> Tensor:
        """The norm of a fresh student's gradient at each of ``total`` steps on the set as it is, ``(total,)``."""
        decoder, rule = problem.decoder, self._rule
        pool = problem.frozen.pool(decoder(learned.images), decoder.labels(learned.labels))
        loss, _, theta, plan = self._lesson(problem, pool, self.total)
        moments, rate, norms = rule.init(theta), learned.log_lr.exp().to(theta.dtype), []
        for rows, draw in zip(plan.batches, plan.draws, strict=True):
            batch, leaf = pool[rows], theta.detach().requires_grad_()
            g = grad(loss(leaf, draw(batch.images), batch.labels), leaf)[0]
            norms.append(g.norm())
            with torch.no_grad():
                theta, moments = rule.update(leaf, moments, g, rate)
        return torch.stack(norms)

    @torch.no_grad()
    def _accuracy(self, problem: Problem, theta: Tensor) -> float:
        """In percent, of a student's parameters ``(p,)`` on a batch of real images, with its statistics."""
        real, network = real_batch(problem, self.batch_real), problem.network
        shown = problem.strategy(self.augment_real).draw(len(real))(real.images)
        unused = theta.new_ones(network.length - network.parameters)  # running statistics, which training does not read
        right = network.apply(torch.cat([theta, unused]), shown).argmax(1) == real.labels.argmax(1)
        return 100 * float(right.double().mean())


def sized(norms: Tensor, t: int, window: int, spread: int) -> int:
    """The size of a window at step ``t``, by the rank of the change of ``norms`` ``(T,)`` there among all changes."""
    changes = norms.diff(prepend=norms[:1]).abs()
    rank = int((changes < changes[t]).sum())
    return int(window - spread + 2 * spread * rank / len(norms))


def after_pass(state: State, accuracy: float, total: int) -> None:
    """Count a pass whose students had this mean ``accuracy`` in percent, and go to the next stage when it is time."""
    for stage in (EARLY, MIDDLE):  # a pass that ends the first counts for the second, as in the released code
        if state.stage == stage:
            state.resting = state.resting + 1 if accuracy - state.before < GAINS[stage] else 0
            if state.resting >= RESTS[stage] * total:
                state.stage, state.resting = stage + 1, 0
    state.before, state.right = accuracy, 0.0
