"""Later stages without easy real examples: a restriction of the real data, which every matcher then sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ddbench import Curriculum, Experts, Problem, Seed, UsageError
from ddbench.problem.labels import forgotten, right

Keep = Annotated[float, Ge(0), Le(1), "share of the easy examples that stays all the same (drop=correct)"]
AT_ONCE = 500  # images per forward pass


def without_easy(problem: Problem, drop: str, judges: int, interval: int, keep: float) -> Problem:
    """The problem with easy examples left out of ``real``; the first stage has all of them.

    ``correct``: what all of the stage's first ``judges`` start networks (which have learned the earlier sets) get
    right is easy; each such example stays with probability ``keep`` (0.2 in the authors' earlier code, with
    5 to 10 networks). ``forgetting``: examples that networks trained on the real data forgot fewer than
    ``stage * interval`` times, summed over ``judges`` networks, are easy (Toneva et al., ICLR 2019; the authors keep a
    band of counts, from scores that were not published). Every class keeps what the budget needs.

    A stage may then start from a real image that an earlier one started from, since both draw from other data.
    """
    stage = len(problem.frozen)
    if drop == "none" or stage == 0:
        return problem
    generator = torch.Generator().manual_seed((problem.seed / "easy" / stage).integer)
    if drop == "correct":
        known = torch.stack([right(problem, problem.starts[i], AT_ONCE) for i in range(judges)])
        easy = known.all(0) & (torch.rand(len(problem.real), generator=generator) >= keep)
    else:
        easy = _forgotten(problem, judges) < stage * interval
    return replace(problem, real=problem.real.subset(_kept(problem, easy, generator)))


def _kept(problem: Problem, easy: Tensor, generator: torch.Generator) -> Tensor:
    """The rows that stay, ascending: all that are not easy, and where a class has too few, some easy ones."""
    taken = sum(len(s) * s.decoder.copies for s in problem.frozen.sets) // problem.classes
    least = taken + problem.shown  # a stage draws behind what the earlier ones took
    rows = []
    for members in problem.real.members:
        hard, rest = members[~easy[members]], members[easy[members]]
        missing = max(0, min(least, len(members)) - len(hard))
        rows += [hard, rest[torch.randperm(len(rest), generator=generator)[:missing]]]
    return torch.cat(rows).sort().values


def _forgotten(problem: Problem, judges: int) -> Tensor:
    """How often each real image was right after an epoch and wrong after the next, ``(n,)``, over all judges.

    An image that a network never learned counts as forgotten in every epoch. The networks are not taught.
    """
    epochs = problem.expert_recipe.epochs
    if epochs is None:
        raise UsageError("drop=forgetting counts over the epochs of experts; set experts.epochs")
    starts = replace(problem.starts, taught=Curriculum(), seed=Seed(problem.starts.seed.root) / "forgetting")
    experts = Experts(starts, problem.real, problem.expert_recipe)
    experts.build(judges, range(1, epochs + 1))
    counts = torch.zeros(len(problem.real), dtype=torch.int64)
    for judge in range(judges):
        vectors = (experts.snapshot(judge, epoch) for epoch in range(1, epochs + 1))
        counts += forgotten(torch.stack([right(problem, v, AT_ONCE) for v in vectors]))
    return counts
