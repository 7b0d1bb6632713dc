"""Problem: what a matcher is asked to solve. A scheduler restates it; it never touches the matcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ddbench.augment import DSA
from ddbench.data import Examples, RealData
from ddbench.errors import UsageError
from ddbench.networks import Network
from ddbench.seeds import Seed
from ddbench.sets import Curriculum
from ddbench.starts import Experts, Starts
from ddbench.training import Recipe


@dataclass(frozen=True)
class Needs:
    """What a matcher wants made before ``init``: ``experts`` trajectories with these ``snapshots``.

    ``recipe`` replaces the run's expert recipe (flat experts, say); None keeps it.
    """

    experts: int = 0
    snapshots: tuple[int, ...] = ()
    recipe: Recipe | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """ "Make ``ipc`` images per class of ``real``, for networks drawn from ``starts``, given ``frozen``."

    It has no test split and no validation split: a matcher cannot choose images by their accuracy.
    ``workspace`` is for derived things worth keeping between steps; it is never saved or compared.
    """

    real: RealData
    ipc: int
    starts: Starts
    expert_recipe: Recipe
    augment: str
    seed: Seed
    frozen: Curriculum = field(default_factory=Curriculum)
    workspace: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> Network:
        return self.starts.network

    @property
    def classes(self) -> int:
        return self.real.classes

    @property
    def dsa(self) -> DSA:
        """The augmentation that keeps this dataset's labels valid."""
        return DSA(self.augment)

    @cached_property
    def experts(self) -> Experts:
        """Trajectories on the real data from these starts; changed starts are other experts."""
        return Experts(self.starts, self.real, self.expert_recipe)

    def sample(self) -> Examples:
        """``ipc`` real images per class, in class order, none of them drawn by an earlier stage.

        A function of the run's seed alone: stage by stage, the same images as one stage would draw.
        """
        before = sum(len(s) for s in self.frozen.sets) // self.classes
        if before + self.ipc > self.real.smallest_class:
            raise UsageError(
                f"ipc {before + self.ipc} asked for, but the smallest class has "
                f"{self.real.smallest_class} training images; choose a smaller --ipc"
            )
        generator = torch.Generator().manual_seed((self.seed / "sample").integer)
        chosen = [
            members[torch.randperm(len(members), generator=generator)[before : before + self.ipc]]
            for members in self.real.members
        ]
        return self.real[torch.cat(chosen)]
